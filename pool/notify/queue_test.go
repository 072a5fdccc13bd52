package notify

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/authpool/authpool/pool/event"
)

// FuzzQueueFile reads whatever stands in a queue's file, and what was written of it.
func FuzzQueueFile(f *testing.F) {
	text, err := json.Marshal(line{Add: &delivery{ID: "1", Host: "h", Event: event.Event{
		Time: time.Unix(1795374000, 0), Kind: event.RedisLost, Text: "Redis does not answer",
	}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(text) + "\n")
	f.Add(string(text) + "\n{\"done\":\"1\"}\n")
	f.Add(string(text))
	f.Add("{\"add\":null}\n[]\n\x00")
	folder := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(folder, "q"+queueSuffix)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		q, _, err := openQueue(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := q.push(delivery{ID: "new"}); err != nil {
			t.Fatal(err)
		}
		q.close()
		again, damaged, err := openQueue(path)
		if err != nil || damaged != 0 || len(again.items) != len(q.items) || again.items[len(again.items)-1].ID != "new" {
			t.Errorf("read %d items again, %d damaged, %v; want %d", len(again.items), damaged, err, len(q.items))
		}
		for i := range again.items {
			if a, b := again.items[i].message(), q.items[i].message(); !reflect.DeepEqual(a, b) {
				t.Errorf("item %d is\n%+v, was\n%+v", i, a, b)
			}
		}
		again.close()
	})
}
