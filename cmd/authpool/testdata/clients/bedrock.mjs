// One JSON turn and one streamed turn with the official SDK, configured by the
// environment: by itself it speaks HTTP/2 to the endpoint that it is told, and looks
// at no proxy. Behind one it needs another handler, which speaks HTTP/1.1. Prints the
// usage that the SDK itself reports.
import { BedrockRuntimeClient, ConverseCommand, ConverseStreamCommand } from "@aws-sdk/client-bedrock-runtime";
import { NodeHttpHandler } from "@smithy/node-http-handler";
import { HttpsProxyAgent } from "https-proxy-agent";

const proxy = process.env.HTTPS_PROXY;
const client = new BedrockRuntimeClient({
  region: "us-east-1",
  maxAttempts: 1,
  ...(proxy && { requestHandler: new NodeHttpHandler({ httpsAgent: new HttpsProxyAgent(proxy) }) }),
});
const ask = {
  modelId: "anthropic.claude-haiku-4-5-20251001-v1:0",
  messages: [{ role: "user", content: [{ text: "Say something short." }] }],
};

const whole = await client.send(new ConverseCommand(ask));

let text = "";
let last;
for await (const event of (await client.send(new ConverseStreamCommand(ask))).stream) {
  text += event.contentBlockDelta?.delta?.text ?? "";
  last = event.metadata?.usage ?? last;
}
client.destroy();

const usage = [whole.usage, last];
const sum = (field) => usage.reduce((n, u) => n + (u[field] ?? 0), 0);
console.log(JSON.stringify({
  answers: [whole.output.message.content[0].text, text],
  requests: usage.length,
  input: sum("inputTokens"),
  output: sum("outputTokens"),
  cache_read: sum("cacheReadInputTokens"),
}));
