// The main path of a chat, on nothing but the WebSocket interface of the web platform: the same file
// runs in Node (on `ws`) and in a page (on the browser's own).

const PATIENCE_MS = 20_000;

class Client {
  static async open(world, device, fields = {}) {
    const client = new Client(world, device);
    await client.expect("hello");
    client.say({ type: "open", device: device.id, ...(fields.ticket ? {} : { token: device.token }), ...fields });
    client.opened = await client.expect("opened");
    return client;
  }

  constructor(world, device) {
    this.device = device;
    this.frames = [];
    this.seen = [];
    this.waiting = null;
    this.socket = new world.WebSocket(world.url, ["ringway.v1.json"]);
    this.ended = new Promise((resolve) => {
      this.socket.onclose = (event) => {
        resolve(event.code);
        this.waiting?.();
      };
    });
    this.socket.onerror = () => {};
    this.socket.onmessage = (event) => {
      const frame = JSON.parse(event.data);
      this.frames.push(frame);
      this.seen.push(frame);
      this.waiting?.();
    };
  }

  say(frame) {
    this.socket.send(JSON.stringify(frame));
  }

  async expect(type, fields = {}) {
    const matches = (frame) =>
      frame.type === type && Object.entries(fields).every(([name, value]) => frame[name] === value);
    const end = Date.now() + PATIENCE_MS;
    for (;;) {
      const at = this.frames.findIndex(matches);
      if (at >= 0) return this.frames.splice(at, 1)[0];
      const error = this.frames.find((frame) => frame.type === "error");
      if (error && type !== "error") throw new Error(`refused: ${JSON.stringify(error)}`);
      if (this.socket.readyState >= 2) throw new Error(`closed with ${await this.ended} while waiting for ${type}`);
      const left = end - Date.now();
      if (left <= 0) throw new Error(`waited in vain for ${type} ${JSON.stringify(fields)}`);
      let timer;
      await new Promise((resolve) => {
        this.waiting = resolve;
        timer = setTimeout(resolve, left);
      });
      clearTimeout(timer);
    }
  }

  async send(to, body) {
    const id = globalThis.crypto.randomUUID();
    this.say({ type: "send", id, to, kind: "text", body });
    return this.expect("stored", { id });
  }

  beat() {
    this.say({ type: "beat", received: Math.max(0, ...this.seen.map((frame) => frame.n ?? 0)) });
  }

  close() {
    this.socket.close();
    return this.ended;
  }
}

function same(actual, expected, what) {
  if (JSON.stringify(actual) !== JSON.stringify(expected)) {
    throw new Error(`${what}: ${JSON.stringify(actual)} is not ${JSON.stringify(expected)}`);
  }
}

/// `world`: { WebSocket, url, conv, alice, phone, tablet }, each device { user, id, token }.
export async function chat(world) {
  const steps = [];
  const step = (name) => steps.push(name);
  const { conv } = world;

  const alice = await Client.open(world, world.alice);
  let phone = await Client.open(world, world.phone);
  const tablet = await Client.open(world, world.tablet);
  same(alice.socket.protocol, "ringway.v1.json", "subprotocol");
  step("open");

  const stored = await alice.send(world.phone.user, "hello \u{1F44B}");
  same([stored.conv, stored.seq], [conv, 1], "ack");
  step("send and ack");

  const message = await phone.expect("message", { seq: 1 });
  same([message.body, message.from, message.conv], ["hello \u{1F44B}", world.alice.user, conv], "delivery");
  await tablet.expect("message", { seq: 1 });
  step("delivery to two devices");

  phone.beat();
  while ((await alice.expect("tick", { conv })).delivered_all !== 1);
  phone.say({ type: "mark", conv, read: 1 });
  while ((await alice.expect("tick", { conv })).read_all !== 1);
  step("ticks: stored, delivered, read");
  for (let mark = {}; mark.read !== 1; ) mark = await tablet.expect("mark", { conv });
  step("the other device knows what was read");

  phone.beat();
  await phone.close();
  for (let number = 2; number <= 5; number++) await alice.send(world.phone.user, `missed ${number}`);
  phone = await Client.open(world, world.phone, { changes_after: message.change });
  // What is between may be replayed or asked for; nothing may be missing.
  if (phone.opened.result === "replay") {
    await phone.expect("message", { seq: 5 });
    const replayed = phone.seen.filter((frame) => frame.type === "message").map((frame) => frame.seq);
    same(replayed.filter((seq) => seq > 1), [2, 3, 4, 5], "replay");
  } else {
    phone.say({ type: "pull", conv, after: 1 });
    same((await phone.expect("page")).messages.map((each) => each.seq), [2, 3, 4, 5], "page");
  }
  step("offline, then resume");

  phone.say({ type: "pull", conv, after: 0, limit: 2 });
  let page = await phone.expect("page");
  same([page.messages.map((each) => each.seq), page.more], [[1, 2], true], "history forward");
  phone.say({ type: "pull", conv, after: page.cursor, limit: 10 });
  same((await phone.expect("page")).messages.map((each) => each.seq), [3, 4, 5], "history by cursor");
  phone.say({ type: "pull", conv, before: 4, limit: 2 });
  same((await phone.expect("page")).messages.map((each) => each.seq), [3, 2], "history backward");
  step("history by cursor in both directions");

  phone.say({ type: "signal", conv, name: "typing", body: "" });
  same((await alice.expect("signal", { conv })).name, "typing", "typing");
  step("typing");

  const older = phone;
  phone = await Client.open(world, world.phone);
  same(await older.ended, 4210, "superseded");
  step("superseded by a newer connection");

  for (const client of [alice, phone, tablet]) await client.close();
  return steps;
}
