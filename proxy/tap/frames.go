package tap

// Mask is what a Tap does with Options.Mask, for texts that are no body: the messages of
// a WebSocket, frame by frame. It is not safe for concurrent use.
type Mask struct {
	pass, sees mask
}

// Reset makes m ready for another socket on which texts must not be seen.
func (m *Mask) Reset(texts [][]byte) {
	m.pass.reset(texts)
	m.sees.reset(texts)
}

// Pass is given the next piece of a message and returns the bytes that may go on now,
// as Tap.Pass does. ErrEcho says that a text stands there across two frames, of which
// the first has gone on: nothing more may.
func (m *Mask) Pass(p []byte) ([]byte, error) {
	if len(m.sees.texts) == 0 {
		return p, nil
	}
	out := m.pass.pass(p)
	if m.sees.sees(out) {
		return nil, ErrEcho // within a frame it would be overwritten by now
	}
	return out, nil
}

// EndFrame says that a frame has ended, and the message with it if last is set. It
// returns the bytes that were held back.
func (m *Mask) EndFrame(last bool) ([]byte, error) {
	out := m.pass.finish()
	if len(out) > 0 && m.sees.sees(out) {
		return nil, ErrEcho
	}
	if last {
		m.sees.held = m.sees.held[:0]
	}
	return out, nil
}
