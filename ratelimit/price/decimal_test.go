package price

import (
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

func TestParsePico(t *testing.T) {
	ok := func(in string, want int64) {
		t.Helper()
		if got, err := parsePico(in); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", in, got, err, want)
		}
	}
	ok("0", 0)
	ok("3", 3_000_000)
	ok("0.3", 300_000)
	ok("0.000001", 1)
	ok("3.10", 3_100_000)
	ok("2.1875000000", 2_187_500)
	ok("007", 7_000_000)
	ok("999999.999999", 999_999_999_999)

	for _, in := range []string{
		"", ".", ".5", "1.", "-1", "+1", "1e3", "1,5", "1_000", " 1", "1 ", "0x1", "1.2.3", "NaN", "inf", "½",
		"0.0000001", "1000000",
	} {
		if got, err := parsePico(in); err == nil {
			t.Errorf("%q: got %d, want an error", in, got)
		}
	}
}

func TestParsePicoIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`[0-9]{1,6}(\.[0-9]{1,6})?`).Draw(t, "price")
		want, _ := new(big.Rat).SetString(s)
		want.Mul(want, big.NewRat(1e6, 1))
		got, err := parsePico(s)
		if err != nil || big.NewRat(got, 1).Cmp(want) != 0 {
			t.Fatalf("%q: got %d, %v; want %s", s, got, err, want)
		}
	})
}

func TestParseFactor(t *testing.T) {
	ok := func(in string, want ratio) {
		t.Helper()
		if got, err := parseFactor(in); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", in, got, err, want)
		}
	}
	ok("1.1", ratio{11, 10})
	ok("6", ratio{6, 1})
	ok("0.5", ratio{1, 2})
	ok("0.500", ratio{1, 2})
	ok("0", ratio{0, 1})
	ok("999.999", ratio{999_999, 1000})

	for _, in := range []string{"", "-1", "1e3", ".5", "1.", "50%", "0.0001", "1000"} {
		if got, err := parseFactor(in); err == nil {
			t.Errorf("%q: got %d, want an error", in, got)
		}
	}
}
