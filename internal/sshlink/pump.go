package sshlink

import "sync"

// pump has a goroutine read or write for callers who may leave before that returns, which is when the pump ends. Bytes are handed over
// and not copied, and nothing is kept for an idle connection. So what a caller gave who got an error is still in use: it is not his any
// more.
type pump struct {
	calls sync.Mutex // one at a time
	todo  chan []byte
	did   chan moved

	ending sync.Once
	over   chan struct{} // closed with err set
	err    error
}

type moved struct {
	n   int
	err error
}

func newPump() *pump {
	return &pump{todo: make(chan []byte), did: make(chan moved, 1), over: make(chan struct{})}
}

// end lets callers go with err, now and later; the first one counts.
func (p *pump) end(err error) {
	p.ending.Do(func() {
		p.err = err
		close(p.over)
	})
}

// run moves what callers ask for until one fails or the pump is at its end.
func (p *pump) run(move func([]byte) (int, error)) {
	for {
		select {
		case b := <-p.todo:
			n, err := move(b)
			p.did <- moved{n, err}
			if err != nil {
				p.end(err)
				return
			}
		case <-p.over:
			return
		}
	}
}

// move is the call of whoever reads or writes.
func (p *pump) move(b []byte) (int, error) {
	p.calls.Lock()
	defer p.calls.Unlock()
	select {
	case p.todo <- b:
	case <-p.over:
		return 0, p.err
	}
	select {
	case m := <-p.did:
		return m.n, m.err
	case <-p.over:
		return 0, p.err
	}
}

type readerFunc func([]byte) (int, error)

// Read implements io.Reader.
func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
