// One JSON turn and one streamed turn with the official SDK, configured by the
// environment alone. Prints the usage that the SDK itself reports.
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ maxRetries: 0 });
const ask = {
  model: "claude-sonnet-4-5",
  max_tokens: 64,
  messages: [{ role: "user", content: "Say something short." }],
};

const whole = await client.messages.create(ask);

const stream = client.messages.stream(ask);
let text = "";
stream.on("text", (delta) => (text += delta));
const streamed = await stream.finalMessage();

const usage = [whole.usage, streamed.usage];
const sum = (field) => usage.reduce((n, u) => n + (u[field] ?? 0), 0);
console.log(JSON.stringify({
  answers: [whole.content[0].text, text],
  requests: usage.length,
  input: sum("input_tokens"),
  output: sum("output_tokens"),
  cache_read: sum("cache_read_input_tokens"),
}));
