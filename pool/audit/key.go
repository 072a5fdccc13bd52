package audit

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Files of the audit folder beside those of lines.
const (
	keyFile       = "key"
	publicKeyFile = "key.pub"
	headFile      = "head.json"
)

// The contexts keep a signature of the one from being taken for one of the other, or
// of anything else.
const (
	signContext = "authpool audit line\x00"
	headContext = "authpool audit head\x00"
)

// openKey reads the key in the folder, or makes one.
func openKey(dir string) (ed25519.PrivateKey, error) {
	path := filepath.Join(dir, keyFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(dir)
	}
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(text); block != nil {
		if parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			if key, ok := parsed.(ed25519.PrivateKey); ok {
				return key, nil
			}
		}
	}
	return nil, fmt.Errorf("%s does not hold an Ed25519 key: put the former one there, or move the folder away to begin a new log", path)
}

func makeKey(dir string) (ed25519.PrivateKey, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	// The private one last: it is what tells that both are there.
	err = replaceFile(filepath.Join(dir, publicKeyFile), []byte(FormatPublicKey(public)+"\n"))
	if err == nil {
		err = replaceFile(filepath.Join(dir, keyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make the key of the audit log: %w", err)
	}
	return key, nil
}

// FormatPublicKey is the key as people and ParsePublicKey read it.
func FormatPublicKey(key ed25519.PublicKey) string { return base64.StdEncoding.EncodeToString(key) }

// ParsePublicKey reads a key from the text that FormatPublicKey has made.
func ParsePublicKey(text string) (ed25519.PublicKey, error) {
	key, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(text))
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, errors.New("it is not a public key of an audit log, which has 44 characters and stands in the folder's key.pub")
	}
	return key, nil
}

func readPublicKey(dir string) (ed25519.PublicKey, error) {
	path := filepath.Join(dir, publicKeyFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the public key: %w; give it by --public-key", err)
	}
	key, err := ParsePublicKey(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// head is the content of head.json.
type head struct {
	Seq       uint64 `json:"seq"`
	Hash      string `json:"hash"`
	Signature string `json:"signature"`
}

func (h *head) message() []byte { return fmt.Appendf(nil, "%s%d %s", headContext, h.Seq, h.Hash) }

func writeHead(dir string, key ed25519.PrivateKey, c chain) error {
	h := head{Seq: c.seq, Hash: c.hash.String()}
	h.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(key, h.message()))
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, headFile), append(text, '\n'))
}

// errHead says that head.json cannot be relied on.
var errHead = errors.New("head.json is not signed by the log's key, or damaged")

// readHead reads where the log stood. An error that is neither errHead nor
// fs.ErrNotExist is of the disk.
func readHead(dir string, key ed25519.PublicKey) (chain, error) {
	text, err := os.ReadFile(filepath.Join(dir, headFile))
	if err != nil {
		return chain{}, err
	}
	var h head
	if json.Unmarshal(text, &h) != nil {
		return chain{}, errHead
	}
	hash, ok := parseDigest(h.Hash)
	signature, err := base64.StdEncoding.Strict().DecodeString(h.Signature)
	if !ok || err != nil || !ed25519.Verify(key, h.message(), signature) {
		return chain{}, errHead
	}
	return chain{h.Seq, hash}, nil
}

// lineMessage is what a line of the kind signed signs.
func lineMessage(before digest) []byte { return append([]byte(signContext), before[:]...) }

// replaceFile writes text under a temporary name, syncs it and renames it, so that
// the name never holds half of it.
func replaceFile(path string, text []byte) error {
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the folder's names durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
