// The main path in headless Chromium, in a page that is served from an origin of its own.
// Takes { world, page, profile } as JSON in its only argument and prints the steps taken.

import { createRequire } from "node:module";

const require = createRequire(`${process.env.NODE_TOOLS}/package.json`);
const { chromium } = require("playwright-core");

const { world, page: address, profile } = JSON.parse(process.argv[2]);
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  headless: true,
  args: [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
try {
  const page = await context.newPage();
  page.on("pageerror", (error) => console.error(error));
  await page.goto(address);
  const steps = await page.evaluate((given) => globalThis.chat(given), world);
  console.log(JSON.stringify(steps));
} finally {
  await context.close();
}
