// Looks at a report in headless Chromium: at the size of a desk and of a phone, in light and in dark, and on paper.
// Takes { page, profile, pictures } as JSON in its only argument and prints what was seen, as JSON.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.env.NODE_TOOLS}/package.json`);
const { chromium } = require("playwright-core");

const { page: file, profile, pictures } = JSON.parse(process.argv[2]);
const address = pathToFileURL(file).href;
const SIZES = { desk: { width: 1280, height: 800 }, phone: { width: 360, height: 740 } };
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

// What a reader would see, and what must not be there. Runs in the page.
function look() {
  const colours = (canvas) => {
    const { width, height } = canvas;
    const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
    const seen = new Set();
    for (let at = 0; at < data.length; at += 4) {
      if (data[at + 3] > 200) seen.add((data[at] >> 4) * 256 + (data[at + 1] >> 4) * 16 + (data[at + 2] >> 4));
    }
    return seen.size;
  };
  const text = (selector) => [...document.querySelectorAll(selector)].map((element) => element.textContent.trim());
  return {
    title: text("h1")[0],
    verdict: text(".verdict")[0],
    headings: text("h2"),
    checks: [...document.querySelectorAll(".thresholds tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent.trim())),
    tables: [...document.querySelectorAll("table")].map((table) => [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim()))),
    tiles: Object.fromEntries([...document.querySelectorAll(".tile")].map((tile) => [tile.querySelector("span").textContent, tile.querySelector("b").textContent])),
    charts: [...document.querySelectorAll("figure")].map((figure) => ({
      id: figure.id,
      colours: Math.max(0, ...[...figure.querySelectorAll("canvas")].map(colours)),
      lines: [...figure.querySelectorAll(".u-legend .u-series .u-label")].map((label) => label.textContent),
    })),
    text: document.body.innerText,
    background: getComputedStyle(document.body).backgroundColor,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    images: document.images.length,
  };
}

const seen = { views: {}, problems: [], requests: [] };
try {
  const page = await context.newPage();
  page.on("pageerror", (error) => seen.problems.push(String(error)));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) seen.problems.push(message.text());
  });
  page.on("request", (request) => {
    if (request.url() !== address) seen.requests.push(request.url());
  });
  for (const [size, viewport] of Object.entries(SIZES)) {
    for (const scheme of ["light", "dark"]) {
      await page.setViewportSize(viewport);
      await page.emulateMedia({ colorScheme: scheme });
      await page.goto(address);
      await page.waitForFunction(() => document.fonts.status === "loaded");
      // The charts follow the size of the page in a turn of their own.
      await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
      seen.views[`${size}-${scheme}`] = await page.evaluate(look);
      await page.screenshot({ path: `${pictures}/${size}-${scheme}.png`, fullPage: true });
    }
  }
  // From a dark phone, which is the hardest: paper is white and wide.
  await page.pdf({ path: `${pictures}/paper.pdf`, format: "A4", printBackground: true });
  console.log(JSON.stringify(seen));
} finally {
  await context.close();
}
