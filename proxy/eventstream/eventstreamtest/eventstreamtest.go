// Package eventstreamtest makes messages of AWS' event stream for tests.
package eventstreamtest

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
)

// Header is a header with a text.
type Header struct{ Name, Value string }

// Message returns a message with these headers.
func Message(payload []byte, headers ...Header) []byte {
	var encoded []byte
	for _, h := range headers {
		encoded = append(encoded, byte(len(h.Name)))
		encoded = append(encoded, h.Name...)
		encoded = append(encoded, 7)
		encoded = binary.BigEndian.AppendUint16(encoded, uint16(len(h.Value)))
		encoded = append(encoded, h.Value...)
	}
	return Raw(payload, encoded)
}

// Raw is Message for headers in their binary form.
func Raw(payload, headers []byte) []byte {
	m := binary.BigEndian.AppendUint32(nil, uint32(16+len(headers)+len(payload)))
	m = binary.BigEndian.AppendUint32(m, uint32(len(headers)))
	m = binary.BigEndian.AppendUint32(m, crc32.ChecksumIEEE(m))
	m = append(append(m, headers...), payload...)
	return binary.BigEndian.AppendUint32(m, crc32.ChecksumIEEE(m))
}

// Event returns an event of Bedrock's streams with a JSON payload.
func Event(kind, payload string) []byte {
	return Message([]byte(payload),
		Header{":event-type", kind}, Header{":content-type", "application/json"}, Header{":message-type", "event"})
}

// Chunk returns an event that holds the JSON text of a model, as
// InvokeModelWithResponseStream sends it.
func Chunk(inner string) []byte {
	return Event("chunk", `{"bytes":"`+base64.StdEncoding.EncodeToString([]byte(inner))+`","p":"abcdefgh"}`)
}

// Exception returns the message of an error.
func Exception(kind, payload string) []byte {
	return Message([]byte(payload),
		Header{":exception-type", kind}, Header{":content-type", "application/json"}, Header{":message-type", "exception"})
}
