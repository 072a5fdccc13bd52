// One JSON turn and one streamed turn of each API with the official SDK,
// configured by the environment alone. The chat stream does not ask for usage:
// authpool must count it all the same, and the SDK must not see the chunk that
// authpool asked for. Prints the usage that the SDK itself reports.
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const messages = [{ role: "user", content: "Say something short." }];
const model = "gpt-4.1";

const chat = await client.chat.completions.create({ model, messages });

let chunksWithoutChoices = 0;
let chatText = "";
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
  if (chunk.choices.length === 0) chunksWithoutChoices++;
  chatText += chunk.choices[0]?.delta?.content ?? "";
}

const response = await client.responses.create({ model, input: messages });

let streamed;
let responseText = "";
for await (const event of await client.responses.create({ model, input: messages, stream: true })) {
  if (event.type === "response.output_text.delta") responseText += event.delta;
  if (event.type === "response.completed") streamed = event.response;
}

// The chat stream's usage is not told to the SDK; the same question has the
// same answer, and so the same usage, as the JSON turn.
const cached = (u) => u.prompt_tokens_details?.cached_tokens ?? u.input_tokens_details?.cached_tokens ?? 0;
const input = (u) => (u.prompt_tokens ?? u.input_tokens) - cached(u);
const output = (u) => u.completion_tokens ?? u.output_tokens;
const usage = [chat.usage, chat.usage, response.usage, streamed.usage];
const sum = (f) => usage.reduce((n, u) => n + f(u), 0);
console.log(JSON.stringify({
  answers: [chat.choices[0].message.content, chatText, response.output_text, responseText],
  chunks_without_choices: chunksWithoutChoices,
  requests: usage.length,
  input: sum(input),
  output: sum(output),
  cache_read: sum(cached),
}));
