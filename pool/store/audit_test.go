package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
)

// Lines stand in the stream once and in order, whoever puts them there a second time.
func TestAuditStream(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		if strings.HasSuffix(t.Name(), "/embedded") {
			return // it knows no streams, and the config wants none there
		}
		s := store.New(client, client, healthy{}, "authpool")
		stream := s.AuditStream("0123")
		if seq, line, err := stream.Last(ctx); seq != 0 || line != nil || err != nil {
			t.Fatalf("an empty stream: %d, %q, %v", seq, line, err)
		}
		for range 2 { // the answer was lost
			if err := stream.Append(ctx, []uint64{1, 2, 3}, [][]byte{[]byte("a"), []byte("b"), []byte("c")}); err != nil {
				t.Fatal(err)
			}
		}
		if err := stream.Append(ctx, []uint64{3, 4}, [][]byte{[]byte("c"), []byte("d")}); err != nil {
			t.Fatal(err)
		}
		if seq, line, err := stream.Last(ctx); seq != 4 || string(line) != "d" || err != nil {
			t.Errorf("last: %d, %q, %v", seq, line, err)
		}
		entries, err := client.XRange(ctx, "authpool:audit:{0123}", "-", "+").Result()
		got := ""
		for _, e := range entries {
			got += fmt.Sprint(e.ID, e.Values["line"], " ")
		}
		if err != nil || got != "1-1a 2-1b 3-1c 4-1d " {
			t.Errorf("%s, %v", got, err)
		}
	})
}
