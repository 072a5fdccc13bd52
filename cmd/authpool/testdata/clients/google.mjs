// One JSON turn and one streamed turn with the official SDK, configured by the
// environment alone. Prints the usage that the SDK itself reports.
import { GoogleGenAI } from "@google/genai";

const client = new GoogleGenAI({ apiKey: process.env.GEMINI_API_KEY });
const ask = { model: "gemini-2.5-flash", contents: "Say something short." };

const whole = await client.models.generateContent(ask);

let text = "";
let last;
for await (const chunk of await client.models.generateContentStream(ask)) {
  text += chunk.text ?? "";
  last = chunk.usageMetadata ?? last;
}

const usage = [whole.usageMetadata, last];
const sum = (f) => usage.reduce((n, u) => n + f(u), 0);
console.log(JSON.stringify({
  answers: [whole.text, text],
  requests: usage.length,
  input: sum((u) => u.promptTokenCount - (u.cachedContentTokenCount ?? 0)),
  output: sum((u) => (u.candidatesTokenCount ?? 0) + (u.thoughtsTokenCount ?? 0)),
  cache_read: sum((u) => u.cachedContentTokenCount ?? 0),
}));
