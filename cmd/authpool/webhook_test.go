package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"
)

var signature = regexp.MustCompile(`^t=([0-9]{10}),v1=([0-9a-f]{64})$`)

// webhook is a receiver of notifications, for stories: webhook ADDRESS FILE writes a
// line for each to FILE, with the path, whether it is signed by $HOOK_SECRET, and the
// body. What is posted below /redirect is sent elsewhere.
func webhook() {
	panic(receive(os.Args[1], os.Args[2]))
}

func receive(address, file string) error {
	out, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	server := http.Server{Addr: address, ReadHeaderTimeout: time.Minute}
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			return
		}
		if rest, ok := strings.CutPrefix(r.URL.Path, "/redirect"); ok {
			http.Redirect(w, r, "/json"+rest, http.StatusFound)
			return
		}
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(out, "%s %s %s\n", r.URL.Path, signedBy(os.Getenv("HOOK_SECRET"), r.Header.Get("X-Authpool-Signature"), body), body)
		w.WriteHeader(http.StatusNoContent)
	})
	return server.ListenAndServe()
}

// signedBy judges a signature as a receiver has to.
func signedBy(secret, header string, body []byte) string {
	parts := signature.FindStringSubmatch(header)
	if parts == nil {
		return "unsigned"
	}
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = mac.Write([]byte(parts[1] + "." + string(body)))
	if hex.EncodeToString(mac.Sum(nil)) != parts[2] {
		return "forged"
	}
	return "signed"
}
