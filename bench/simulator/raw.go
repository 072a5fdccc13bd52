package simulator

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"
)

// raw is the answer that a fault of kind [RawAnswer] plays; nil for the other kinds. The fault must have been checked.
func (f *Fault) raw() []byte {
	if f.AnswerBase64 == "" {
		return []byte(f.Answer)
	}
	b, _ := base64.StdEncoding.DecodeString(f.AnswerBase64)
	return b
}

// checkAnswer tells what is wrong with the answer of a fault.
func (f *Fault) checkAnswer() error {
	switch given := f.Answer != "" || f.AnswerBase64 != ""; {
	case f.Kind != RawAnswer && (given || f.AnswerFile != ""):
		return fmt.Errorf("answer: only with kind %s, not %s", RawAnswer, f.Kind)
	case f.Kind != RawAnswer:
		return nil
	case !given:
		return errors.New("answer: missing, give a raw HTTP/1.1 answer: head, blank line, body")
	case f.Answer != "" && f.AnswerBase64 != "":
		return errors.New("answer, answer_base64: give one of them")
	}
	if _, err := base64.StdEncoding.DecodeString(f.AnswerBase64); err != nil {
		return fmt.Errorf("answer_base64: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(f.raw())), nil)
	if err != nil {
		return fmt.Errorf("answer: not a raw HTTP/1.1 answer: %w", err)
	}
	defer resp.Body.Close() // in memory
	if resp.StatusCode < 200 {
		return fmt.Errorf("answer: status %d, want 200 or more", resp.StatusCode)
	}
	return nil
}

// load reads the answer from the file that the fault names.
func (f *Fault) load() error {
	if f.AnswerFile == "" {
		return nil
	}
	b, err := os.ReadFile(f.AnswerFile)
	if err != nil {
		return fmt.Errorf("answer_file: %w", err)
	}
	f.Answer += string(b)
	return nil
}

// play writes the fault's answer and closes the connection, after its delay. Only line ends of the head that are a
// line feed alone become CR LF; no other byte is touched. An answer that names no length ends with the connection.
func (f *Fault) play(w http.ResponseWriter, r *http.Request) {
	if pause(r.Context(), time.Duration(f.DelayMS)*time.Millisecond) != nil {
		panic(http.ErrAbortHandler)
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // not HTTP/1.1
	}
	defer func() { _ = conn.Close() }() // the client sees it
	_, _ = conn.Write(withLineEnds(f.raw()))
}

// withLineEnds ends the lines of an answer's head with CR LF.
func withLineEnds(raw []byte) []byte {
	var out []byte
	for len(raw) > 0 {
		line, rest, _ := bytes.Cut(raw, []byte("\n"))
		line = bytes.TrimSuffix(line, []byte("\r"))
		out = append(append(out, line...), "\r\n"...)
		raw = rest
		if len(line) == 0 {
			break
		}
	}
	return append(out, raw...)
}
