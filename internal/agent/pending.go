package agent

// pending is what has come on a channel and was not received.
type pending struct {
	parts [][]byte // at most MaxPayload each
	since uint64   // which arrival is the first of them
}

// add keeps the payload of f: a large one itself, of others a copy that takes no more room than they do.
func (p *pending) add(f *Frame) {
	b := f.Payload
	if len(b) > MaxPayload/2 {
		p.parts = append(p.parts, b)
		f.Payload = nil
		return
	}
	if last := len(p.parts) - 1; last >= 0 && len(p.parts[last])+len(b) <= MaxPayload {
		p.parts[last] = append(p.parts[last], b...)
		return
	}
	p.parts = append(p.parts, append(buffers.room(len(b)), b...))
}

// size is how many bytes there are.
func (p *pending) size() int {
	n := 0
	for _, part := range p.parts {
		n += len(part)
	}
	return n
}
