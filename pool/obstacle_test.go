package pool

import "testing"

func TestObstaclesHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for o := range obstacles {
		name := obstacleNames[o]
		if (name == "") != (o == none) || seen[name] {
			t.Errorf("obstacle %d is called %q in a Trace", o, name)
		}
		seen[name] = true
	}
}
