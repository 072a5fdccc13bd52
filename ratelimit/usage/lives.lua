-- Lives, as Life in Go explains them, are "<id>@<last number before it>,...", the
-- oldest first.

local function parse_lives(text)
  local lives = {}
  for id, after in string.gmatch(text, '([^@,]*)@(%d+)') do
    lives[#lives + 1] = { id = id, after = tonumber(after) }
  end
  return lives
end

-- Up to which number two writers of these lives mean the same events: EVER when they
-- do not part, -1 when their oldest lives were dropped and it cannot be told.
local EVER = 2 ^ 53

local function shared(mine, theirs)
  mine, theirs = parse_lives(mine), parse_lives(theirs)
  local places = {}
  for i, life in ipairs(theirs) do places[life.id] = i end
  for i = #mine, 1, -1 do
    local at = places[mine[i].id]
    if at then
      local my_next, their_next = mine[i + 1], theirs[at + 1]
      return math.min(my_next and my_next.after or EVER, their_next and their_next.after or EVER)
    end
  end
  if mine[1] and theirs[1] and mine[1].after == 0 and theirs[1].after == 0 then return 0 end
  return -1
end

