package pool

import "container/heap"

// crowd is sessions that have something in common: all, those of one subscription,
// or those of one agent there. Only the last has a ring of sessions, the others have
// parts, the largest of them first. One without sessions is not kept.
type crowd struct {
	name  string
	in    *crowd // nil: it is all
	size  int    // sessions in it and its parts
	place int    // among the parts of in

	byName map[string]*crowd
	parts  crowds

	head session // of the ring: next is the most recently used
}

// part returns the part of that name, new if it is not there; then a session has to
// be added to it.
func (c *crowd) part(name string) *crowd {
	one := c.byName[name]
	if one == nil {
		one = &crowd{name: name, in: c}
		one.head.prev, one.head.next = &one.head, &one.head
		if c.byName == nil {
			c.byName = make(map[string]*crowd)
		}
		c.byName[name] = one
		heap.Push(&c.parts, one)
	}
	return one
}

// add puts a session in front of those of an agent.
func (c *crowd) add(s *session) {
	s.room = c
	s.linkBehind(&c.head)
	for ; c.in != nil; c = c.in {
		c.size++
		heap.Fix(&c.in.parts, c.place)
	}
}

// drop takes a session out.
func (c *crowd) drop(s *session) {
	s.prev.next, s.next.prev = s.next, s.prev
	s.room, s.prev, s.next = nil, nil, nil
	for ; c.in != nil; c = c.in {
		c.size--
		if c.size > 0 {
			heap.Fix(&c.in.parts, c.place)
			continue
		}
		heap.Remove(&c.in.parts, c.place)
		delete(c.in.byName, c.name)
	}
}

// oldest is the least recently used session of an agent.
func (c *crowd) oldest() *session { return c.head.prev }

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
