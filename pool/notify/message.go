package notify

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/authpool/authpool/pool/event"
)

// The headers of a notification.
const (
	// SignatureHeader holds "t=T,v1=S": T is when it was sent, in seconds of the
	// epoch; S is the HMAC-SHA256 with the target's secret over T, a full stop and
	// the body's bytes, in hex. A receiver computes S itself, compares in constant
	// time, and refuses a T that is more than five minutes away and an id that it
	// knows: so nothing can be replayed. A repetition is signed anew.
	SignatureHeader = "X-Authpool-Signature"
	// IDHeader is the body's id.
	IDHeader = "X-Authpool-Notification-Id"
	// EventHeader is the body's event.
	EventHeader = "X-Authpool-Event"
)

// Message is the JSON body of a notification. A field that does not apply is absent.
// More fields may come with time.
type Message struct {
	ID           string     `json:"id"`    // the same in every repetition
	Event        event.Kind `json:"event"` // what has happened
	Time         time.Time  `json:"time"`  // when; UTC
	Host         string     `json:"host"`  // name of the machine that found it out
	Provider     string     `json:"provider,omitempty"`
	Subscription string     `json:"subscription,omitempty"`
	Model        string     `json:"model,omitempty"`
	Agent        string     `json:"agent,omitempty"`
	Session      string     `json:"session,omitempty"`
	Window       string     `json:"window,omitempty"`
	Reason       string     `json:"reason,omitempty"`
	Until        *time.Time `json:"until,omitempty"`    // when it is expected to be over; UTC
	Repeated     int        `json:"repeated,omitempty"` // how often the same happened since it was told last, beside this time
	Text         string     `json:"text"`               // one sentence for people
}

// Sign is the content of SignatureHeader.
func Sign(secret string, at time.Time, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = fmt.Fprintf(mac, "%d.", at.Unix()) // a hash takes everything
	_, _ = mac.Write(body)
	return fmt.Sprintf("t=%d,v1=%s", at.Unix(), hex.EncodeToString(mac.Sum(nil)))
}

// message is d's Message.
func (d delivery) message() Message {
	e := d.Event
	m := Message{
		ID: d.ID, Event: e.Kind, Time: e.Time.UTC().Truncate(time.Millisecond), Host: d.Host,
		Provider: e.Provider, Subscription: e.Subscription, Model: e.Model, Agent: e.Agent, Session: e.Session,
		Window: e.Window, Reason: e.Reason, Repeated: d.Repeated, Text: e.Text,
	}
	if !e.Until.IsZero() {
		until := e.Until.UTC().Truncate(time.Millisecond)
		m.Until = &until
	}
	return m
}

// body is what is posted in the given format.
func (d delivery) body(format Format) ([]byte, error) {
	m := d.message()
	if format != Slack {
		return json.Marshal(m)
	}
	// Slack's markup has these three characters (docs.slack.dev, "Formatting message text").
	text := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(m.Text)
	if m.Until != nil {
		text += ", until " + m.Until.Format("2006-01-02 15:04:05 UTC")
	}
	if m.Repeated > 0 {
		text += fmt.Sprintf("; %d more times since it was told last", m.Repeated)
	}
	return json.Marshal(map[string]string{"text": fmt.Sprintf("*%s* %s (%s)", m.Event, text, m.Host)})
}
