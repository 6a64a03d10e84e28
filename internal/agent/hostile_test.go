package agent_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/mitogen-mux/mitogen-mux/internal/agent"
	"github.com/mitogen-mux/mitogen-mux/internal/agent/agenttest"
	"github.com/mitogen-mux/mitogen-mux/internal/blobcache"
	"github.com/mitogen-mux/mitogen-mux/internal/fault"
)

// number is a CREDIT's payload.
func number(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// rec is a record of fields with tags and values in turn.
func rec(fields ...string) []byte {
	var b []byte
	for i := 0; i < len(fields); i += 2 {
		b = append(b, fields[i][0])
		b = binary.BigEndian.AppendUint32(b, uint32(len(fields[i+1])))
		b = append(b, fields[i+1]...)
	}
	return b
}

// TestRefusedFrames: whatever an agent says that the page does not allow ends its link with a typed error, and no other link.
func TestRefusedFrames(t *testing.T) {
	ctx := within(t)
	bystander := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
		f.Boot()
		for {
			f.Send(agent.TypePong, 0, f.Expect(agent.TypePing).Payload)
		}
	})
	var (
		command = agent.Command{Argv: argv("true")}
		put     = agent.Put{Dest: []byte("/x"), Size: 1}
		module  = agent.Module{Name: "ping"}
		spawn   = agent.Spawn{Argv: argv("su")}
	)
	raw := func(length uint32, typ byte, stream uint32) func(*agenttest.Fake) {
		return func(f *agenttest.Fake) {
			b := append(number(length), typ)
			f.Raw(append(b, number(stream)...))
		}
	}
	say := func(typ agent.FrameType, stream uint32, payload string) func(*agenttest.Fake) {
		return func(f *agenttest.Fake) { f.Send(typ, stream, []byte(payload)) }
	}
	both := func(first, second func(*agenttest.Fake)) func(*agenttest.Fake) {
		return func(f *agenttest.Fake) { first(f); second(f) }
	}
	flood := func(typ agent.FrameType) func(*agenttest.Fake) {
		return func(f *agenttest.Fake) {
			for range 4<<20/agent.MaxPayload + 1 { // more than any window
				f.Send(typ, 1, make([]byte, agent.MaxPayload))
			}
		}
	}
	for name, c := range map[string]struct {
		request agent.Request
		say     func(*agenttest.Fake)
		want    string
	}{
		"type 0":                  {command, raw(0, 0, 1), "unknown frame type 0"},
		"type 18":                 {command, raw(0, 18, 1), "unknown frame type 18"},
		"type 255":                {command, raw(0, 255, 0), "unknown frame type 255"},
		"payload too long":        {command, raw(agent.MaxPayload+1, 3, 1), "DATA frame of 131073 bytes"},
		"payload 4 GiB":           {command, raw(0xffffffff, 3, 1), "DATA frame of 4294967295 bytes"},
		"empty DATA":              {command, raw(0, 3, 1), "DATA frame of 0 bytes"},
		"empty ERR":               {command, raw(0, 4, 1), "ERR frame of 0 bytes"},
		"END with payload":        {command, say(agent.TypeEnd, 1, "x"), "END frame of 1 bytes"},
		"CREDIT of 3 bytes":       {command, say(agent.TypeCredit, 1, "\x00\x00\x01"), "CREDIT frame of 3 bytes"},
		"PONG of 7 bytes":         {command, say(agent.TypePong, 0, "1234567"), "PONG frame of 7 bytes"},
		"LOG without level":       {command, say(agent.TypeLog, 0, ""), "LOG frame of 0 bytes"},
		"LOG too long":            {command, say(agent.TypeLog, 0, strings.Repeat("\x01", 4098)), "LOG frame of 4098 bytes"},
		"LOG level 0":             {command, say(agent.TypeLog, 0, "\x00x"), "LOG of level 0"},
		"LOG level 5":             {command, say(agent.TypeLog, 0, "\x05x"), "LOG of level 5"},
		"RESULT too long":         {command, raw(agent.MaxPayload, 9, 1), "RESULT frame of 131072 bytes"},
		"OPEN":                    {command, say(agent.TypeOpen, 2, "\x04"), "OPEN frame in the wrong direction"},
		"CANCEL":                  {command, say(agent.TypeCancel, 1, ""), "CANCEL frame in the wrong direction"},
		"PING":                    {command, say(agent.TypePing, 0, "12345678"), "PING frame in the wrong direction"},
		"DROP":                    {command, say(agent.TypeDrop, 0, strings.Repeat("x", 32)), "DROP frame in the wrong direction"},
		"KEEP":                    {command, say(agent.TypeKeep, 1, "x"), "KEEP frame in the wrong direction"},
		"KEPT":                    {command, say(agent.TypeKept, 1, "\x00\x00\x00\x01"), "KEPT frame in the wrong direction"},
		"FORGET":                  {command, say(agent.TypeForget, 0, "\x00\x00\x00\x01"), "FORGET frame in the wrong direction"},
		"DATA on the link":        {command, say(agent.TypeData, 0, "x"), "DATA frame on stream 0"},
		"RESULT on the link":      {command, say(agent.TypeResult, 0, ""), "RESULT frame on stream 0"},
		"LOG on a stream":         {command, say(agent.TypeLog, 1, "\x01x"), "LOG frame on stream 1"},
		"second HELLO":            {command, say(agent.TypeHello, 0, string(agent.EncodeHello(agenttest.GoodHello()))), "where HELLO comes first and once"},
		"PONG without PING":       {command, say(agent.TypePong, 0, "12345678"), "PONG without a PING"},
		"stream never opened":     {command, say(agent.TypeData, 2, "x"), "not open"},
		"stream far away":         {command, say(agent.TypeResult, 0xffffffff, ""), "not open"},
		"after RESULT":            {command, both(say(agent.TypeResult, 1, ""), say(agent.TypeData, 1, "x")), "not open"},
		"second RESULT":           {command, both(say(agent.TypeResult, 1, ""), say(agent.TypeResult, 1, "")), "not open"},
		"TTY of a command":        {command, say(agent.TypeTTY, 1, "x"), "TTY frame on a stream of kind 2"},
		"TTY of a module":         {module, say(agent.TypeTTY, 1, "x"), "TTY frame on a stream of kind 1"},
		"TTY where there is none": {spawn, say(agent.TypeTTY, 1, "x"), "TTY frame on a stream of kind 5"},
		"DATA of a put":           {put, say(agent.TypeData, 1, "x"), "DATA frame on a stream of kind 3"},
		"ERR of a put":            {put, say(agent.TypeErr, 1, "x"), "ERR frame on a stream of kind 3"},
		"END of a put":            {put, say(agent.TypeEnd, 1, ""), "END frame on a stream of kind 3"},
		"ERR of a get":            {agent.Get{}, say(agent.TypeErr, 1, "x"), "ERR frame on a stream of kind 4"},
		"DATA after END":          {command, both(say(agent.TypeEnd, 1, ""), say(agent.TypeData, 1, "x")), "DATA frame after END"},
		"second END":              {command, both(say(agent.TypeEnd, 1, ""), say(agent.TypeEnd, 1, "")), "END frame after END"},
		"WINDOW":                  {put, say(agent.TypeWindow, 1, "\x00\x20\x00\x00"), "WINDOW frame in the wrong direction"},
		"CREDIT of nothing":       {put, say(agent.TypeCredit, 1, "\x00\x00\x00\x00"), "CREDIT of 0"},
		"CREDIT not used":         {put, say(agent.TypeCredit, 1, "\x00\x00\x00\x01"), "CREDIT of 1"},
		"CREDIT that would wrap":  {put, say(agent.TypeCredit, 1, "\xff\xff\xff\xff"), "CREDIT of 4294967295"},
		"DATA beyond credit":      {agent.Get{}, flood(agent.TypeData), "on a credit of 0"},
		"ERR beyond credit":       {command, flood(agent.TypeErr), "on a credit of 0"},
		"RESULT: junk":            {command, say(agent.TypeResult, 1, "junk"), "cut short"},
		"RESULT: field too long":  {command, say(agent.TypeResult, 1, "\x01\xff\xff\xff\xff1"), "cut short"},
		"RESULT: unknown field":   {command, say(agent.TypeResult, 1, string(rec("\x0e", "x"))), "unknown field 14"},
		"RESULT: long record":     {command, say(agent.TypeResult, 1, string(rec("\x0b", strings.Repeat("x", 4097)))), "4097 bytes"},
		"RESULT: twice":           {command, say(agent.TypeResult, 1, string(rec("\x04", "1", "\x04", "1"))), "field 4 twice"},
		"RESULT: not a number":    {command, say(agent.TypeResult, 1, string(rec("\x04", "1 "))), "not a decimal number"},
		"RESULT: negative":        {command, say(agent.TypeResult, 1, string(rec("\x04", "-1"))), "not a decimal number"},
		"RESULT: leading zero":    {command, say(agent.TypeResult, 1, string(rec("\x04", "01"))), "not a decimal number"},
		"RESULT: exit code 256":   {command, say(agent.TypeResult, 1, string(rec("\x04", "256"))), "256 where 255 is the most"},
		"RESULT: status 2":        {command, say(agent.TypeResult, 1, string(rec("\x01", "2"))), "neither 0 nor 1"},
		"RESULT: failed, no kind": {command, say(agent.TypeResult, 1, string(rec("\x01", "1"))), "contradict"},
		"RESULT: kind, done":      {command, say(agent.TypeResult, 1, string(rec("\x02", "io"))), "contradict"},
		"RESULT: unknown kind":    {command, say(agent.TypeResult, 1, string(rec("\x01", "1", "\x02", "tired"))), "contradict"},
		"RESULT: long text":       {command, say(agent.TypeResult, 1, string(rec("\x01", "1", "\x02", "io", "\x03", strings.Repeat("x", 4097)))), "4097 bytes"},
		"RESULT: short digest":    {command, say(agent.TypeResult, 1, string(rec("\x0a", "x"))), "digest of 1 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
				f.Boot()
				f.Open()
				c.say(f)
				f.Drain()
			})
			_, err := l.Hello(ctx)
			must(t, err)
			s := open(ctx, t, l, c.request)
			_ = s.CloseSend() // what takes input would be held back
			<-l.Done()        // nobody receives: a flood meets the end of its credit
			for err == nil {
				_, err = s.Recv(ctx)
			}
			if fault.KindOf(err) != fault.AgentDied && !errors.Is(err, io.EOF) {
				t.Errorf("the stream ended with %v", err)
			}
			refused(t, l.Err(), c.want)
		})
	}
	must(t, bystander.Ping(ctx))
}

func refused(t *testing.T, err error, want string) {
	t.Helper()
	v, ok := errors.AsType[*agent.ViolationError](err)
	if !ok || fault.KindOf(err) != fault.AgentDied || !strings.Contains(v.What, want) {
		t.Errorf("the link ended with %v, want %q", err, want)
	}
}

// TestRefusedHello: what comes first is HELLO of the agent that was sent.
func TestRefusedHello(t *testing.T) {
	ctx := within(t)
	bad := func(change func(*agent.Hello)) []byte {
		h := agenttest.GoodHello()
		change(&h)
		return agent.EncodeHello(h)
	}
	for name, c := range map[string]struct {
		typ     agent.FrameType
		stream  uint32
		payload []byte
		kind    fault.Kind
	}{
		"other protocol": {agent.TypeHello, 0, bad(func(h *agent.Hello) { h.Protocol = 2 }), fault.AgentVersion},
		"no protocol":    {agent.TypeHello, 0, bad(func(h *agent.Hello) { h.Protocol = 0 }), fault.AgentVersion},
		"other source":   {agent.TypeHello, 0, bad(func(h *agent.Hello) { h.Source = blobcache.Sum(nil) }), fault.AgentVersion},
		"empty":          {agent.TypeHello, 0, nil, fault.AgentVersion},
		"junk":           {agent.TypeHello, 0, []byte("junk"), fault.AgentDied},
		"long account":   {agent.TypeHello, 0, bad(func(h *agent.Hello) { h.Account = strings.Repeat("x", 257) }), fault.AgentDied},
		"long path":      {agent.TypeHello, 0, bad(func(h *agent.Hello) { h.Executable = strings.Repeat("x", 4097) }), fault.AgentDied},
		"too long":       {agent.TypeHello, 0, bytes.Repeat([]byte("x"), 16<<10+1), fault.AgentDied},
		"on a stream":    {agent.TypeHello, 1, bad(func(*agent.Hello) {}), fault.AgentDied},
		"LOG first":      {agent.TypeLog, 0, []byte("\x01x"), fault.AgentDied},
		"PONG first":     {agent.TypePong, 0, []byte("12345678"), fault.AgentDied},
		"RESULT first":   {agent.TypeResult, 1, nil, fault.AgentDied},
	} {
		t.Run(name, func(t *testing.T) {
			l := agenttest.Link(t, agent.Options{}, func(f *agenttest.Fake) {
				f.Raw([]byte(agenttest.Magic))
				f.ReadSource()
				f.Send(c.typ, c.stream, c.payload)
				f.Drain()
			})
			_, err := l.Hello(ctx)
			if fault.KindOf(err) != c.kind {
				t.Errorf("got %v", err)
			}
			<-l.Done()
		})
	}
}

// TestFarSidesWordsAreCleaned: nothing of what an agent says reaches a terminal as it came.
func TestFarSidesWordsAreCleaned(t *testing.T) {
	ctx := within(t)
	var logs []string
	said := make(chan struct{})
	const evil = "\x1b]0;owned\x07a\x1b[31mb\u202e\r\n\xff"
	l := agenttest.Link(t, agent.Options{OnLog: func(_ int, text string) {
		logs = append(logs, text)
		close(said)
	}}, func(f *agenttest.Fake) {
		f.Raw([]byte(agenttest.Magic))
		f.ReadSource()
		h := agenttest.GoodHello()
		h.Executable, h.Account, h.Python = evil, evil, evil
		f.Send(agent.TypeHello, 0, agent.EncodeHello(h))
		f.Send(agent.TypeLog, 0, []byte("\x01"+evil))
		id, _ := f.Open()
		f.Result(id, agent.Result{Failed: true, Failure: agent.FailIO, Text: evil})
		f.Drain()
	})
	h, err := l.Hello(ctx)
	must(t, err)
	<-said
	g := gather(ctx, t, open(ctx, t, l, agent.Get{Source: []byte("/x")}))
	for _, text := range []string{h.Executable, h.Account, h.Python, logs[0], g.result.Text, g.result.Err().Error()} {
		if text != "ab" {
			t.Errorf("got %q", text)
		}
	}
}

// TestTalkativeAgent: log messages beyond the allowance are left out, said once, and more work allows more.
func TestTalkativeAgent(t *testing.T) {
	ctx := within(t)
	var texts []string // written by the link's reader, read after a Ping
	l := agenttest.Link(t, agent.Options{OnLog: func(_ int, text string) { texts = append(texts, text) }}, func(f *agenttest.Fake) {
		f.Boot()
		for range 5000 {
			f.Send(agent.TypeLog, 0, []byte("\x04x"))
		}
		f.Send(agent.TypePong, 0, f.Expect(agent.TypePing).Payload)
		id, _ := f.Open()
		f.Send(agent.TypeLog, 0, []byte("\x04again"))
		f.Result(id, agent.Result{})
		f.Drain()
	})
	must(t, l.Ping(ctx))
	said := len(texts)
	if said == 0 || said > 256 || !strings.Contains(texts[said-1], "left out") {
		t.Fatalf("%d messages came through", said)
	}
	gather(ctx, t, open(ctx, t, l, agent.Get{Source: []byte("/x")}))
	if len(texts) != said+1 || texts[said] != "again" {
		t.Errorf("after more work: %q", texts[said:])
	}
}
