package daemon

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeService serves nothing, as it is told to.
type fakeService struct {
	busy   atomic.Bool
	failed chan error // what Serve fails with
	done   chan struct{}
}

func newFakeService() *fakeService {
	return &fakeService{failed: make(chan error, 1), done: make(chan struct{})}
}

func (s *fakeService) Serve(rpc, agents net.Listener) error {
	defer closeQuietly(rpc)
	defer closeQuietly(agents)
	select {
	case err := <-s.failed:
		return err
	case <-s.done:
		return nil
	}
}
func (s *fakeService) Busy() bool               { return s.busy.Load() }
func (s *fakeService) Shutdown(context.Context) { close(s.done) }

func testOptions(dir Dir, ready func(string) error) Options {
	return Options{
		Dir: dir, Version: "v1", Ready: ready, Refused: func(error) {},
		Open:         func() (Service, error) { return newFakeService(), nil },
		StartTimeout: time.Minute, IdleGrace: time.Minute, StopGrace: time.Minute,
	}
}

func TestWaitIdle(t *testing.T) {
	const grace, ms = 30 * time.Second, time.Millisecond
	type span struct{ from, to time.Duration }
	for name, c := range map[string]struct {
		busy []span
		want time.Duration // when it leaves
	}{
		"nobody comes":              {nil, 30 * time.Second},
		"one comes and goes":        {[]span{{500 * ms, 3400 * ms}}, 4250 * ms},
		"one comes late":            {[]span{{29500 * ms, 40400 * ms}}, 41250 * ms},
		"a short gap is none":       {[]span{{0, 5400 * ms}, {6100 * ms, 9400 * ms}}, 10250 * ms},
		"one too short to be seen":  {[]span{{1100 * ms, 1200 * ms}}, 30 * time.Second},
		"one that stays very long":  {[]span{{0, time.Hour - ms}}, time.Hour + 750*ms},
		"two that come one by one":  {[]span{{0, 2400 * ms}, {2600 * ms, 5400 * ms}}, 6250 * ms},
		"the first after the grace": {[]span{{31 * time.Second, 99 * time.Second}}, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				busy := func() bool {
					for _, s := range c.busy {
						if at := time.Since(start); s.from <= at && at < s.to {
							return true
						}
					}
					return false
				}
				if err := waitIdle(t.Context(), grace, busy); err != nil {
					t.Fatal(err)
				}
				if got := time.Since(start); got != c.want {
					t.Errorf("left after %v, want %v", got, c.want)
				}
			})
		})
	}
}

func TestWaitIdleEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("told to")
	cancel(why)
	if err := waitIdle(ctx, time.Hour, func() bool { return true }); !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
}

func TestLife(t *testing.T) {
	broken, refused := errors.New("the service broke"), errors.New("nobody reads the handshake")
	for name, c := range map[string]struct {
		ready error
		fail  error
		end   bool
		want  error
	}{
		"told to stop":            {end: true},
		"nobody needs it":         {},
		"the service breaks":      {fail: broken, want: broken},
		"the starter is gone":     {ready: refused, want: refused},
		"both break at one time ": {ready: refused, fail: broken, want: refused},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				service := newFakeService()
				ctx, cancel := context.WithCancelCause(t.Context())
				o := testOptions(Dir{"/d"}, func(string) error { return c.ready })
				if c.fail != nil {
					service.failed <- c.fail
				}
				if c.end {
					cancel(errors.New("told to"))
				}
				rpc, agents := unusedListener{}, unusedListener{}
				if err := live(ctx, o, service, rpc, agents); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				cancel(nil)
				select {
				case <-service.done:
				default:
					t.Error("the service was not shut down")
				}
			})
		})
	}
}

// A service that does not end does not keep the process.
func TestServiceThatDoesNotEnd(t *testing.T) {
	for name, stuck := range map[string]func(release chan struct{}) Service{
		"shutdown": func(release chan struct{}) Service {
			return &stuckService{fakeService: newFakeService(), shutdown: release}
		},
		"serve": func(release chan struct{}) Service {
			return &stuckService{fakeService: newFakeService(), serve: release}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				cancel(errors.New("told to"))
				o := testOptions(Dir{"/d"}, func(string) error { return nil })
				release, start := make(chan struct{}), time.Now()
				if err := live(ctx, o, stuck(release), unusedListener{}, unusedListener{}); !errors.Is(err, ErrStuck) {
					t.Errorf("got %v, want ErrStuck", err)
				}
				if took := time.Since(start); took != 2*o.StopGrace {
					t.Errorf("took %v, want %v", took, 2*o.StopGrace)
				}
				close(release)
			})
		})
	}
}

// stuckService hangs where it has a channel.
type stuckService struct {
	*fakeService
	serve, shutdown chan struct{}
}

func (s *stuckService) Serve(rpc, agents net.Listener) error {
	err := s.fakeService.Serve(rpc, agents)
	if s.serve != nil {
		<-s.serve
	}
	return err
}

func (s *stuckService) Shutdown(ctx context.Context) {
	if s.shutdown != nil {
		<-s.shutdown
	}
	s.fakeService.Shutdown(ctx)
}

type unusedListener struct{ net.Listener }

func (unusedListener) Close() error { return nil }

// Many start at once: one serves, the others give its handshake and leave.
func TestRace(t *testing.T) {
	dir := testDir(t)
	const starters = 8
	var opened atomic.Int32
	ctx, stop := context.WithCancelCause(t.Context())
	lines := make(chan string, starters)
	ended := make(chan error, starters)
	for range starters {
		o := testOptions(dir, func(line string) error { lines <- line; return nil })
		o.Open = func() (Service, error) {
			opened.Add(1)
			return newFakeService(), nil
		}
		go func() { ended <- Run(ctx, o) }()
	}
	for range starters {
		if got := <-lines; got != "mitogen-mux 1 v1 unix "+dir.Path()+"/mux-v1.sock grpc\n" {
			t.Errorf("handshake: got %q", got)
		}
	}
	for range starters - 1 {
		check(t, <-ended)
	}
	if got := opened.Load(); got != 1 {
		t.Errorf("%d serve, want 1", got)
	}
	stop(errors.New("enough"))
	check(t, <-ended)
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

// One that is leaving has closed its socket and still has the lock: the next one waits for the lock.
func TestStartWhileAnotherLeaves(t *testing.T) {
	dir := testDir(t)
	lock, err := dir.Lock("v1")
	check(t, err)
	ctx, stop := context.WithCancelCause(t.Context())
	ready := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, testOptions(dir, func(string) error { close(ready); return nil }))
	}()
	select {
	case <-ready:
		t.Error("served while another had the lock")
	case <-ended:
		t.Error("gave up while another had the lock")
	case <-time.After(50 * time.Millisecond):
	}
	lock.Release()
	<-ready
	stop(errors.New("enough"))
	check(t, <-ended)
}

func TestStuck(t *testing.T) {
	dir := testDir(t)
	lock, err := dir.Lock("v1")
	check(t, err)
	defer lock.Release()
	o := testOptions(dir, func(string) error { t.Error("ready"); return nil })
	o.StartTimeout = 20 * time.Millisecond
	if err := Run(t.Context(), o); reasonOf(err) != Stuck {
		t.Errorf("got %v, want Stuck", err)
	}
}

func TestServiceThatCannotOpenLeavesNothing(t *testing.T) {
	dir := testDir(t)
	o := testOptions(dir, func(string) error { t.Error("ready"); return nil })
	broken := errors.New("broken")
	o.Open = func() (Service, error) { return nil, broken }
	if err := Run(t.Context(), o); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

// A lock file is removed when it is released, so two that open the file around that moment must not lock different files.
func TestLockIsHeldOnce(t *testing.T) {
	dir := testDir(t)
	var held atomic.Int32
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 500 {
				lock, err := dir.Lock("v1")
				if errors.Is(err, ErrLocked) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if held.Add(1) != 1 {
					t.Error("two have the lock")
				}
				held.Add(-1)
				lock.Release()
			}
		})
	}
	all.Wait()
}

// A killed daemon leaves its files; the next one serves in its place.
func TestAfterKill(t *testing.T) {
	dir := testDir(t)
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), serveEnv+"="+dir.Path())
	out, err := child.StdoutPipe()
	check(t, err)
	check(t, child.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	check(t, err)
	check(t, child.Process.Kill())
	_ = child.Wait()
	if got := names(t, dir); len(got) != 3 {
		t.Fatalf("got %v, want two sockets and a lock", got)
	}

	ctx, stop := context.WithCancelCause(t.Context())
	err = Run(ctx, testOptions(dir, func(again string) error {
		if again != line {
			t.Errorf("got %q, want %q", again, line)
		}
		conn, err := Dial(ctx, dir.Socket("v1"))
		if err == nil {
			err = conn.Close()
		}
		stop(errors.New("enough"))
		return err
	}))
	check(t, err)
}
