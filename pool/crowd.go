package pool

import "container/heap"

// crowd is sessions that have something in common: all, those of one subscription,
// or those of one agent there. Only the last has a list of sessions, the others have
// parts, the largest of them first. One without sessions is not kept, unless it is
// of no subscription.
type crowd struct {
	name  string
	in    *crowd // nil: it is all
	size  int    // sessions in it and its parts
	place int    // among the parts of in

	byName map[string]*crowd
	parts  crowds

	newest, oldest *session // by use

	spare *crowd // of all: the last one that emptied
}

// part returns the part of that name, new if it is not there; then a session has to
// be added to it.
func (c *crowd) part(name string, all *crowd) *crowd {
	one := c.byName[name]
	if one != nil {
		return one
	}
	if one = all.spare; one == nil {
		one = &crowd{}
	}
	all.spare = nil
	one.name, one.in = name, c
	if c.byName == nil {
		c.byName = make(map[string]*crowd)
	}
	c.byName[name] = one
	heap.Push(&c.parts, one)
	return one
}

// add puts a session in front of those of an agent.
func (c *crowd) add(s *session) {
	s.room = c
	c.link(s)
	for ; c.in != nil; c = c.in {
		c.size++
		heap.Fix(&c.in.parts, c.place)
	}
}

// drop takes a session out.
func (c *crowd) drop(s *session) {
	c.unlink(s)
	s.room = nil
	var empty *crowd
	for ; c.in != nil; c = c.in {
		c.size--
		if c.size > 0 || c.name == "" { // to which every new session goes for a moment
			heap.Fix(&c.in.parts, c.place)
			continue
		}
		heap.Remove(&c.in.parts, c.place)
		delete(c.in.byName, c.name)
		if empty == nil {
			empty = c
		}
	}
	if empty != nil {
		empty.in, c.spare = nil, empty
	}
}

func (c *crowd) link(s *session) {
	s.newer, s.older = nil, c.newest
	if c.newest != nil {
		c.newest.newer = s
	} else {
		c.oldest = s
	}
	c.newest = s
}

func (c *crowd) unlink(s *session) {
	if s.newer != nil {
		s.newer.older = s.older
	} else {
		c.newest = s.older
	}
	if s.older != nil {
		s.older.newer = s.newer
	} else {
		c.oldest = s.newer
	}
	s.newer, s.older = nil, nil
}

// crowds is a heap of which the first has the most sessions.
type crowds []*crowd

func (c crowds) Len() int           { return len(c) }
func (c crowds) Less(i, j int) bool { return c[i].size > c[j].size }
func (c crowds) Swap(i, j int) {
	c[i], c[j] = c[j], c[i]
	c[i].place, c[j].place = i, j
}

// Push implements heap.Interface.
func (c *crowds) Push(x any) {
	one := x.(*crowd)
	one.place = len(*c)
	*c = append(*c, one)
}

// Pop implements heap.Interface.
func (c *crowds) Pop() any {
	last := len(*c) - 1
	one := (*c)[last]
	(*c)[last] = nil
	*c = (*c)[:last]
	return one
}
