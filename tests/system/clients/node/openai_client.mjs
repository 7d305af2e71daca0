// The npm client `openai`: `OPENAI_BASE_URL=… node openai_client.mjs URL` prints a report.

import OpenAI from "openai";
import { each, leave, report, running } from "./report.mjs";

const client = new OpenAI({ maxRetries: 0 });
const chats = client.chat.completions;
const asked = (content) => [{ role: "user", content }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", description: "now", parameters } }];
const text = (chunk) => chunk.choices[0]?.delta.content ?? "";

const checks = {
  models: async () => each(client.models.list(), (model) => model.id),
  unknown: () => chats.create({ model: "nope", messages: asked("hi") }),
  unknown_response: () => client.responses.create({ model: "nope", input: "hi" }),
  embed: () => client.embeddings.create({ model: "embedded/lexicon", input: "hi" }),
  text: () => each(chats.create({ model: "scripted", messages: asked("A"), stream: true }), text),
  thinking: async () => (await chats.create({ model: "scripted", messages: asked("B") })).choices[0].message,
  json: async () => {
    const response_format = { type: "json_object" };
    return (await chats.create({ model: "scripted", messages: asked("C"), response_format })).choices[0].message.content;
  },
  tool: async () => {
    const final = await chats.stream({ model: "scripted", messages: asked("D"), tools }).finalChatCompletion();
    return final.choices[0].message.tool_calls;
  },
  mock_tool: async () =>
    (await chats.create({ model: "mock:tools", messages: asked("D"), tools })).choices[0].message.tool_calls,
  tool_refused: () => chats.create({ model: "embedded/lexicon", messages: asked("hi"), tools }),
  response: async () => {
    const response = await client.responses.create({ model: "scripted", input: "B" });
    return { kinds: response.output.map((item) => item.type), text: response.output_text, usage: response.usage };
  },
  completion: async () => (await client.completions.create({ model: "scripted", prompt: "F" })).choices[0],
  broken: () => each(chats.create({ model: "mock:cut", messages: asked("hi"), stream: true }), text),
  broken_whole: () => chats.create({ model: "mock:cut", messages: asked("hi") }),
  left: async () => {
    const stream = await chats.create({ model: "scripted", messages: asked("G"), stream: true });
    return leave(stream, () => stream.controller.abort());
  },
  left_silent: async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const answer = chats.create({ model: "mock:stall-first", messages: asked("hi") }, { signal });
    running(process.argv[2], "mock:stall-first").then(() => controller.abort());
    await answer;
  },
};

for (const model of ["embedded/lexicon", "mock:steady", "scripted"]) {
  const asking = { model, messages: asked("What is a glacier? F"), seed: 7, max_tokens: 12 };
  checks[`chat ${model}`] = () => chats.create(asking);
  checks[`stream ${model}`] = () =>
    each(chats.create({ ...asking, stream: true, stream_options: { include_usage: true } }), (chunk) => chunk);
  checks[`logprobs ${model}`] = async () =>
    (await chats.create({ ...asking, logprobs: true, top_logprobs: 2 })).choices[0].logprobs.content;
}

await report(checks);
