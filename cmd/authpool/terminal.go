package main

import "os"

// isTerminal tells whether standard output is a terminal.
func (p *program) isTerminal() bool {
	f, ok := p.Out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
