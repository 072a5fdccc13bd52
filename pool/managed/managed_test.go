package managed_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/managed"
	"github.com/authpool/authpool/pool/recall"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/seal"
	"github.com/authpool/authpool/pool/store"
)

type healthy struct{}

func (healthy) Healthy() bool { return true }

// each runs the suite on both kinds of Redis and a cluster.
func each(t *testing.T, suite func(t *testing.T, open func() (*managed.Store, *store.Store), client redis.UniversalClient)) {
	t.Helper()
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		suite(t, func() (*managed.Store, *store.Store) {
			s := store.New(client, client, healthy{}, "authpool")
			return managed.New(s.ManagedRecords(), (*recall.File)(nil), func() bool { return true }), s
		}, client)
	})
}

func record(id string) managed.Record {
	return managed.Record{ID: id, Switch: managed.Enabled, Settings: json.RawMessage(`{"provider":"anthropic"}`), Secret: "sealed"}
}

// Who writes over what somebody else wrote meanwhile is refused, and nobody's change
// is lost.
func TestVersions(t *testing.T) {
	each(t, func(t *testing.T, open func() (*managed.Store, *store.Store), _ redis.UniversalClient) {
		s, _ := open()
		other, _ := open()
		ctx := t.Context()
		if list, err := s.List(ctx); err != nil || list == nil || len(list) != 0 {
			t.Fatalf("at first: %v, %v", list, err)
		}
		first, err := s.Put(ctx, record("team-a"))
		if err != nil || first.Version != 1 || first.Created.IsZero() || !first.Changed.Equal(first.Created) && first.Changed.Before(first.Created) {
			t.Fatalf("%+v, %v", first, err)
		}
		if _, err := other.Put(ctx, record("team-a")); !errors.Is(err, managed.ErrVersion) {
			t.Errorf("added twice: %v", err)
		}
		drained := first
		drained.Switch = managed.Draining
		drained, err = other.Put(ctx, drained)
		if err != nil || drained.Version != 2 {
			t.Fatalf("%+v, %v", drained, err)
		}
		if _, err := s.Put(ctx, first); !errors.Is(err, managed.ErrVersion) {
			t.Errorf("over another's change: %v", err)
		}
		if err := s.Remove(ctx, "team-a", 1); !errors.Is(err, managed.ErrVersion) {
			t.Errorf("removed as it was: %v", err)
		}
		list, err := s.List(ctx)
		if err != nil || len(list) != 1 || list[0].Switch != managed.Draining || list[0].Version != 2 || !list[0].Created.Equal(first.Created) || !list[0].Managed() {
			t.Errorf("%+v, %v", list, err)
		}
		if err := s.Remove(ctx, "team-a", 2); err != nil {
			t.Error(err)
		}
		if err := other.Remove(ctx, "team-a", 2); !errors.Is(err, managed.ErrNotFound) {
			t.Errorf("removed twice: %v", err)
		}
		if list, err := s.List(ctx); err != nil || len(list) != 0 {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

// Of many who change the same at once each either wins or is told to look again.
func TestRaces(t *testing.T) {
	each(t, func(t *testing.T, open func() (*managed.Store, *store.Store), _ redis.UniversalClient) {
		s, _ := open()
		ctx := t.Context()
		if _, err := s.Put(ctx, record("team-a")); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				mine, _ := open()
				for done := 0; done < 10; {
					list, err := mine.List(ctx)
					if err != nil {
						t.Error(err)
						return
					}
					r := list[0]
					r.Settings = json.RawMessage(fmt.Sprintf(`{"n":%d,"by":%d}`, count(t, r)+1, worker))
					switch _, err := mine.Put(ctx, r); {
					case err == nil:
						done++
					case !errors.Is(err, managed.ErrVersion):
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if list, err := s.List(ctx); err != nil || count(t, list[0]) != 80 || list[0].Version != 81 {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

func count(t *testing.T, r managed.Record) int {
	t.Helper()
	var v struct{ N int }
	if err := json.Unmarshal(r.Settings, &v); err != nil {
		t.Error(err)
	}
	return v.N
}

// A change is heard of by the others without being asked for.
func TestWatch(t *testing.T) {
	each(t, func(t *testing.T, open func() (*managed.Store, *store.Store), _ redis.UniversalClient) {
		writer, _ := open()
		reader, events := open()
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer stop()
		listening := make(chan struct{}, 16)
		wg.Go(func() {
			events.Watch(ctx, func(e store.Event) {
				if e == (store.Event{}) {
					listening <- struct{}{}
				}
				if e.Managed || e == (store.Event{}) {
					reader.Heard()
				}
			})
		})
		got := make(chan []managed.Record, 16)
		wg.Go(func() {
			reader.Watch(ctx, func(list []managed.Record, err error) {
				if err == nil {
					got <- list
				}
			})
		})
		<-listening
		if _, err := writer.Put(ctx, record("team-a")); err != nil {
			t.Fatal(err)
		}
		for deadline := time.After(30 * time.Second); ; {
			select {
			case list := <-got:
				if len(list) == 1 && list[0].ID == "team-a" {
					return
				}
			case <-deadline:
				t.Fatal("nobody told")
			}
		}
	})
}

// What another version of authpool wrote, or somebody else, is kept, serves nobody, and
// hides no other.
func TestStrangeRecords(t *testing.T) {
	each(t, func(t *testing.T, open func() (*managed.Store, *store.Store), client redis.UniversalClient) {
		s, _ := open()
		ctx := t.Context()
		if _, err := s.Put(ctx, record("team-a")); err != nil {
			t.Fatal(err)
		}
		if err := client.HSet(ctx, "authpool:managed", "strange", "7 [not, a record", ":state", "9999999999999999").Err(); err != nil {
			t.Fatal(err)
		}
		list, err := s.List(ctx)
		if err != nil || len(list) != 2 || list[0].ID != "strange" || list[0].Switch != managed.Disabled || list[0].Version != 7 || list[1].ID != "team-a" {
			t.Errorf("%+v, %v", list, err)
		}
		// What it holds, a secret perhaps, is not written over.
		for _, change := range []managed.Switch{managed.Enabled, managed.Draining} {
			r := list[0]
			r.Switch = change
			if _, err := s.Put(ctx, r); !errors.Is(err, managed.ErrUnreadable) {
				t.Errorf("%s: %v", change, err)
			}
		}
		if text, err := client.HGet(ctx, "authpool:managed", "strange").Result(); err != nil || text != "7 [not, a record" {
			t.Errorf("it is %q now, %v", text, err)
		}
		if err := s.Remove(ctx, "strange", 7); err != nil {
			t.Error(err)
		}
	})
}

// keyfile is a keyset's source.
type keyfile struct {
	mu   sync.Mutex
	text credential.Secret
	err  error

	writing sync.Mutex
}

func (k *keyfile) read(context.Context) (credential.Secret, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.text, k.err
}

func (k *keyfile) write(text credential.Secret) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.text = text
	return nil
}

func (k *keyfile) lock() (func(), error) {
	k.writing.Lock()
	return k.writing.Unlock, nil
}

func newKeyfile(t *testing.T) *keyfile {
	t.Helper()
	keys, err := seal.New()
	if err != nil {
		t.Fatal(err)
	}
	text, err := keys.Text()
	if err != nil {
		t.Fatal(err)
	}
	return &keyfile{text: text}
}

var target = managed.Target{Provider: "anthropic", Scheme: credential.APIKey, Hosts: []string{"api.anthropic.com:443"}}

func toTarget(*managed.Record) (managed.Target, error) { return target, nil }

// Secrets never stand in Redis in the clear, whoever's they are, and a rotation brings
// all of them under the new key.
func TestVault(t *testing.T) {
	each(t, func(t *testing.T, open func() (*managed.Store, *store.Store), client redis.UniversalClient) {
		ctx := t.Context()
		s, _ := open()
		keys := newKeyfile(t)
		vault := managed.NewVault(managed.Keys{Read: keys.read, Write: keys.write, Lock: keys.lock})
		for _, id := range []string{"team-a", "team-b", "team-c"} {
			r := managed.Record{ID: id, Switch: managed.Enabled, Settings: json.RawMessage(`{}`)}
			if err := vault.Seal(ctx, &r, target, credential.NewSecret("sk-secret-"+id), managed.Private{Email: id + "@example.com"}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Put(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Put(ctx, managed.Record{ID: "of-file", Switch: managed.Draining}); err != nil {
			t.Fatal(err)
		}
		raw, err := client.HGetAll(ctx, "authpool:managed").Result()
		if err != nil || strings.Contains(fmt.Sprint(raw), "sk-secret") || strings.Contains(fmt.Sprint(raw), "example.com") {
			t.Errorf("Redis has %v, %v", raw, err)
		}
		// Two records changed places, and one was put together from two.
		list, _ := s.List(ctx)
		a, b := find(t, list, "team-a"), find(t, list, "team-b")
		a.Secret, b.Secret = b.Secret, a.Secret
		for _, r := range []managed.Record{a, b} {
			if _, _, err := vault.Open(ctx, &r, target); !errors.Is(err, seal.ErrNotOpened) {
				t.Errorf("swapped: %v", err)
			}
			if _, err := managed.NewSource(vault, r, target).Credential(ctx); !errors.Is(err, seal.ErrNotOpened) {
				t.Errorf("swapped, at its use: %v", err)
			}
		}
		other := target
		other.Hosts = []string{"evil.example:443"}
		if _, err := managed.NewSource(vault, find(t, list, "team-a"), other).Credential(ctx); !errors.Is(err, seal.ErrNotOpened) {
			t.Errorf("elsewhere: %v", err)
		}

		before := keys.text
		done, err := vault.Rotate(ctx, s, toTarget)
		if err != nil || done.Keys != 2 || !done.Added || done.Resealed != 3 || len(done.Failed) != 0 {
			t.Fatalf("%+v, %v", done, err)
		}
		if again, err := managed.NewVault(managed.Keys{Read: keys.read}).Rotate(ctx, s, toTarget); err != nil || again.Added || again.Resealed != 0 || again.Keys != 2 {
			t.Errorf("nothing was left to do: %+v, %v", again, err)
		}
		list, _ = s.List(ctx)
		for _, id := range []string{"team-a", "team-b", "team-c"} {
			r := find(t, list, id)
			secret, private, err := vault.Open(ctx, &r, target)
			if err != nil || secret.Reveal() != "sk-secret-"+id || private.Email != id+"@example.com" || r.Version != 2 {
				t.Errorf("%s: %v, %+v, %v", id, secret, private, err)
			}
			stale := managed.NewVault(managed.Keys{Read: (&keyfile{text: before}).read})
			if _, _, err := stale.Open(ctx, &r, target); !errors.Is(err, seal.ErrNotOpened) {
				t.Errorf("the key of before opens it: %v", err)
			}
		}
	})
}

func find(t *testing.T, list []managed.Record, id string) managed.Record {
	t.Helper()
	i := slices.IndexFunc(list, func(r managed.Record) bool { return r.ID == id })
	if i < 0 {
		t.Fatalf("no %s in %+v", id, list)
	}
	return list[i]
}

// With a wrong keyset nothing is lost: the records stay as they are, a rotation names
// those that it could not open, and with the right one all is well.
func TestWrongKeyset(t *testing.T) {
	client := redistest.Mini(t)
	records := store.New(client, client, healthy{}, "authpool")
	s := managed.New(records.ManagedRecords(), (*recall.File)(nil), func() bool { return true })
	ctx := t.Context()
	right, wrong := newKeyfile(t), newKeyfile(t)
	r := record("team-a")
	if err := managed.NewVault(managed.Keys{Read: right.read}).Seal(ctx, &r, target, credential.NewSecret("sk-1"), managed.Private{}); err != nil {
		t.Fatal(err)
	}
	r, err := s.Put(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	done, err := managed.NewVault(managed.Keys{Read: wrong.read, Write: wrong.write, Lock: wrong.lock}).Rotate(ctx, s, toTarget)
	if err != nil || done.Resealed != 0 || !errors.Is(done.Failed["team-a"], seal.ErrNotOpened) {
		t.Errorf("%+v, %v", done, err)
	}
	if secret, _, err := managed.NewVault(managed.Keys{Read: right.read}).Open(ctx, &r, target); err != nil || secret.Reveal() != "sk-1" {
		t.Errorf("%v, %v", secret, err)
	}
	// A keyset that cannot be read any more changes nothing for who has read it.
	vault := managed.NewVault(managed.Keys{Read: right.read})
	if err := vault.Check(ctx); err != nil {
		t.Fatal(err)
	}
	right.text, right.err = credential.Secret{}, errors.New("the disk is gone")
	if _, _, err := vault.Open(ctx, &r, target); err != nil {
		t.Error(err)
	}
	if err := managed.NewVault(managed.Keys{Read: right.read}).Check(ctx); err == nil || !strings.Contains(err.Error(), "the disk is gone") {
		t.Errorf("%v", err)
	}
}

// Of processes that rotate at once none loses the key of another, and what each has
// sealed goes on opening.
func TestRotationsAtOnce(t *testing.T) {
	client := redistest.Mini(t)
	keys := newKeyfile(t)
	ctx := t.Context()
	open := func() (*managed.Store, *managed.Vault) {
		s := managed.New(store.New(client, client, healthy{}, "authpool").ManagedRecords(), (*recall.File)(nil), func() bool { return true })
		return s, managed.NewVault(managed.Keys{Read: keys.read, Write: keys.write, Lock: keys.lock})
	}
	s, vault := open()
	r := record("team-a")
	if err := vault.Seal(ctx, &r, target, credential.NewSecret("sk-1"), managed.Private{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(ctx, r); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s, vault := open()
			if err := vault.Check(ctx); err != nil { // it knows the keyset as it was
				t.Error(err)
			}
			if done, err := vault.Rotate(ctx, s, toTarget); err != nil || !done.Added {
				t.Errorf("%+v, %v", done, err)
			}
		})
	}
	wg.Wait()
	_, last := open()
	list, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if secret, _, err := last.Open(ctx, &list[0], target); err != nil || secret.Reveal() != "sk-1" {
		t.Errorf("%v, %v", secret, err)
	}
	if all, err := seal.Open(keys.text); err != nil || all.Keys() != 9 {
		t.Errorf("%d keys, %v", all.Keys(), err)
	}
}

// What another process has sealed with a key of a moment ago opens at once: nobody is
// disabled by a rotation.
func TestRotatedElsewhere(t *testing.T) {
	client := redistest.Mini(t)
	records := store.New(client, client, healthy{}, "authpool")
	s := managed.New(records.ManagedRecords(), (*recall.File)(nil), func() bool { return true })
	ctx := t.Context()
	keys := newKeyfile(t)
	one, other := managed.NewVault(managed.Keys{Read: keys.read, Write: keys.write, Lock: keys.lock}), managed.NewVault(managed.Keys{Read: keys.read})
	r := record("team-a")
	if err := one.Seal(ctx, &r, target, credential.NewSecret("sk-1"), managed.Private{}); err != nil {
		t.Fatal(err)
	}
	r, err := s.Put(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := other.Open(ctx, &r, target); err != nil { // it has read the keyset now
		t.Fatal(err)
	}
	if done, err := one.Rotate(ctx, s, toTarget); err != nil || done.Resealed != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	list, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if secret, _, err := other.Open(ctx, &list[0], target); err != nil || secret.Reveal() != "sk-1" {
		t.Errorf("%v, %v", secret, err)
	}
}

// A keyset that is not authpool's to write is taken as it is at the rotation, however
// short a time ago it was read; one that cannot be read is told of, since all would seem
// to be rotated.
func TestRotatedByHand(t *testing.T) {
	client := redistest.Mini(t)
	s := managed.New(store.New(client, client, healthy{}, "authpool").ManagedRecords(), (*recall.File)(nil), func() bool { return true })
	ctx := t.Context()
	keys := newKeyfile(t)
	vault := managed.NewVault(managed.Keys{Read: keys.read})
	r := record("team-a")
	if err := vault.Seal(ctx, &r, target, credential.NewSecret("sk-1"), managed.Private{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(ctx, r); err != nil {
		t.Fatal(err)
	}
	old, err := seal.Open(keys.text)
	if err != nil {
		t.Fatal(err)
	}
	more, err := old.Rotated()
	if err != nil {
		t.Fatal(err)
	}
	if keys.text, err = more.Text(); err != nil {
		t.Fatal(err)
	}
	if done, err := vault.Rotate(ctx, s, toTarget); err != nil || done.Added || done.Keys != 2 || done.Resealed != 1 {
		t.Errorf("%+v, %v", done, err)
	}
	keys.err = errors.New("the program is gone")
	if done, err := vault.Rotate(ctx, s, toTarget); err == nil || !strings.Contains(err.Error(), "the program is gone") {
		t.Errorf("%+v, %v", done, err)
	}
}

// failing are records that cannot be read, and count how often that is tried.
type failing struct{ looks int }

var errFailing = errors.New("WRONGTYPE")

func (*failing) Put(context.Context, store.Record) (int64, error) { return 0, errFailing }
func (*failing) Remove(context.Context, string, int64) error      { return errFailing }
func (f *failing) List(context.Context, string) ([]store.Record, string, bool, error) {
	f.looks++
	return nil, "", false, errFailing
}

// After a look that failed the next one comes in a second: not sooner, and however long
// that goes on.
func TestWatchLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &failing{}
		s := managed.New(f, (*recall.File)(nil), func() bool { return true })
		ctx, stop := context.WithCancel(t.Context())
		told := 0
		var wg sync.WaitGroup
		wg.Go(func() { s.Watch(ctx, func(_ []managed.Record, err error) { told++ }) })
		s.Heard()
		time.Sleep(60*time.Second + time.Millisecond)
		stop()
		wg.Wait()
		if f.looks < 60 || f.looks > 68 || told != f.looks { // one a second, and those of the slow beat
			t.Errorf("%d looks in a minute, %d told", f.looks, told)
		}
	})
}
