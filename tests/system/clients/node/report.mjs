// Runs each check, one after the other, and prints what came of them as one JSON object: {name: {value} | {error}}.

const CHECK_MS = 60_000; // generous: only something stuck runs into it
const ERROR_FIELDS = ["name", "message", "status", "status_code", "code", "type"];

export async function report(checks) {
  const found = {};
  for (const [name, check] of Object.entries(checks)) {
    try {
      found[name] = { value: await Promise.race([check(), stuck()]) };
    } catch (error) {
      const told = ERROR_FIELDS.filter((field) => error[field] !== undefined).map((field) => [field, error[field]]);
      found[name] = { error: { class: error.constructor.name, ...Object.fromEntries(told) } };
    }
  }
  console.log(JSON.stringify(found));
  process.exit(0);
}

function stuck() {
  return new Promise((_, reject) => setTimeout(() => reject(new Error("stuck")), CHECK_MS));
}

// What `pick` sees in each part of a stream.
export async function each(stream, pick) {
  const found = [];
  for await (const part of await stream) found.push(pick(part));
  return found;
}

// Follows a stream to its fifth part and calls `abort` then: how it went on.
export async function leave(stream, abort) {
  let parts = 0;
  try {
    for await (const _ of await stream) {
      parts += 1;
      if (parts === 5) abort();
    }
  } catch (error) {
    return { parts, error: error.name };
  }
  return { parts, error: null };
}

// Until the engine says that an answer of `model` is under way.
export async function running(url, model) {
  for (;;) {
    const { sessions } = await (await fetch(`${url}/stats`)).json();
    if (sessions.running.some((session) => session.model.endsWith(model))) return;
  }
}
