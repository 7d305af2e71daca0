// The npm client `ollama`: `node ollama_client.mjs URL` prints a report.

import { Ollama } from "ollama";
import { each, leave, report, running } from "./report.mjs";

const url = process.argv[2];
const client = new Ollama({ host: url });
const asked = (content) => [{ role: "user", content }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", description: "now", parameters } }];
const short = { seed: 7, num_predict: 12 };

const checks = {
  models: async () => (await client.list()).models.map((model) => model.name),
  show: async () => (await client.show({ model: "embedded/lexicon" })).capabilities,
  unknown: () => client.chat({ model: "nope", messages: asked("hi") }),
  embed: () => client.embed({ model: "embedded/lexicon", input: "hi" }),
  delete: () => client.delete({ model: "mock:steady" }),
  text: () => each(client.chat({ model: "scripted", messages: asked("A"), stream: true }), (p) => p.message.content),
  thinking: async () => (await client.chat({ model: "scripted", messages: asked("B"), think: true })).message,
  json: async () => (await client.chat({ model: "scripted", messages: asked("C"), format: "json" })).message.content,
  tool: async () => (await client.chat({ model: "scripted", messages: asked("D"), tools })).message.tool_calls,
  mock_tool: async () => (await client.chat({ model: "mock:tools", messages: asked("D"), tools })).message.tool_calls,
  tool_refused: () => client.chat({ model: "embedded/lexicon", messages: asked("hi"), tools }),
  broken: () => each(client.chat({ model: "mock:cut", messages: asked("hi"), stream: true }), (p) => p.done),
  broken_whole: () => client.generate({ model: "mock:cut", prompt: "hi" }),
  left: async () => {
    const stream = await client.chat({ model: "scripted", messages: asked("G"), stream: true });
    return leave(stream, () => stream.abort());
  },
  left_silent: async () => {
    const controller = new AbortController(); // the client's own abort() knows only streams that have begun
    const { signal } = controller;
    const leaving = new Ollama({ host: url, fetch: (to, init) => fetch(to, { ...init, signal }) });
    const answer = leaving.generate({ model: "mock:stall-first", prompt: "hi" });
    running(url, "mock:stall-first").then(() => controller.abort());
    await answer;
  },
};

for (const model of ["embedded/lexicon", "mock:steady", "scripted"]) {
  const asking = { model, messages: asked("What is a glacier? F"), options: short };
  checks[`chat ${model}`] = () => client.chat(asking);
  checks[`stream ${model}`] = () => each(client.chat({ ...asking, stream: true }), (part) => part);
  checks[`generate ${model}`] = () => client.generate({ model, prompt: "What is a glacier? F", options: short });
  checks[`logprobs ${model}`] = async () =>
    (await client.chat({ ...asking, logprobs: true, top_logprobs: 2 })).logprobs;
}

await report(checks);
