package main

import "os"

// isTerminal tells whether standard output is a terminal.
func (p *program) isTerminal() bool {
	f, ok := p.Out.(*os.File)
	return ok && isTerminal(f)
}

// isTerminal tells whether a file is a terminal.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
