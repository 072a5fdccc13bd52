package provider

import "bytes"

// blockMarks are what the pages and texts of content delivery networks say, in
// lower case, by which they keep a client out that they do not like the address of:
// Cloudflare's blocks, challenges and errors 1xxx, CloudFront's and Akamai's blocks.
var blockMarks = [...][]byte{
	[]byte("sorry, you have been blocked"),
	[]byte("attention required! | cloudflare"),
	[]byte("<title>just a moment..."),
	[]byte("used cloudflare to restrict access"),
	[]byte("request blocked. we can"),
	[]byte("<title>access denied"),
}

// pageStart is how much of a page is looked at: the title and the headline.
const pageStart = 8 << 10

// blockPage tells whether the answer is a page by which something in front of the
// provider keeps the request out: no error of the provider's is in it.
func (s *signs) blockPage() bool {
	if s.Failure != nil || s.Status != 403 && s.Status != 429 && s.Status != 503 {
		return false
	}
	if s.challenged {
		return true
	}
	body := bytes.TrimSpace(s.Body[:min(len(s.Body), pageStart)])
	if len(body) == 0 || body[0] == '{' || body[0] == '[' {
		return false
	}
	if s.Status == 403 && s.html {
		return true
	}
	body = bytes.ToLower(body)
	// What Cloudflare tells clients that ask for no page.
	if number, ok := bytes.CutPrefix(body, []byte("error code: 10")); ok && len(number) == 2 {
		return true
	}
	for _, mark := range blockMarks {
		if bytes.Contains(body, mark) {
			return true
		}
	}
	return false
}

// foreignAddress tells whether the credential is good, but not from this address.
func (s *signs) foreignAddress() bool {
	if s.is("API_KEY_IP_ADDRESS_BLOCKED") {
		return true
	}
	if s.Status != 401 && s.Status != 403 {
		return false
	}
	if s.says("ip not authorized") || s.says("virtual network/firewall rules") {
		return true
	}
	address := s.says("your ip") || s.says("ip address") || s.says("request ip")
	return address && (s.says("allowlist") || s.says("allow list") || s.says("whitelist") || s.says("not authorized") || s.says("not allowed"))
}
