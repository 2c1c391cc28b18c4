// The main path on npm's `ws`. Takes the world as JSON in its only argument and prints the steps taken.

import { createRequire } from "node:module";
import { webcrypto } from "node:crypto";
import { chat } from "./scenario.mjs";

globalThis.crypto ??= webcrypto;
// The modules live among the build products, not beside this file.
const require = createRequire(`${process.env.NODE_TOOLS}/package.json`);
const { WebSocket } = require("ws");

const world = JSON.parse(process.argv[2]);
console.log(JSON.stringify(await chat({ ...world, WebSocket })));
