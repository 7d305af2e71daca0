/**
 * Makes static/vendor of the packages in node_modules: the code, its style, the fonts, and the licences of all of it.
 * `pip install -e .` and `pip wheel .` run it; by hand: `npm install && npm run build` in this folder.
 */

import { copyFileSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const OUT = "static/vendor";
const BUILT = `${OUT}.new`; // takes the place of OUT once it is whole
const NOT_SHIPPED = new Set(["@types/trusted-types"]); // types only
const FONTS = [
  { family: "Inter", from: "@fontsource-variable/inter", file: "inter-latin-wght-normal.woff2", weights: "100 900" },
  { family: "JetBrains Mono", from: "@fontsource/jetbrains-mono", file: "jetbrains-mono-latin-400-normal.woff2", weights: "400 500" },
];
// The letters that are in these files, as fontsource tells it: others come from the system's own fonts.
const LATIN = "U+0000-00FF, U+0131, U+0152-0153, U+02BB-02BC, U+02C6, U+02DA, U+02DC, U+0304, U+0308, U+0329, U+2000-206F, U+20AC, U+2122, U+2191, U+2193, U+2212, U+2215, U+FEFF, U+FFFD";

/** The packages that went into the bundle, by the paths of its inputs. @param {Record<string, unknown>} inputs */
function bundled(inputs) {
  const names = Object.keys(inputs).map((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1]);
  return [...new Set(names)].filter((name) => name !== undefined && !NOT_SHIPPED.has(name));
}

/** @param {string} name of a package */
function licence(name) {
  const { version, license } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8"));
  return `${name} ${version} (${license})\n\n${readFileSync(`node_modules/${name}/LICENSE`, "utf8").trim()}\n`;
}

function style() {
  const faces = FONTS.map(({ family, file, weights }) => `@font-face{font-family:"${family}";font-style:normal;font-display:swap;font-weight:${weights};src:url(${file}) format("woff2");unicode-range:${LATIN}}`);
  return [...faces, readFileSync("node_modules/uplot/dist/uPlot.min.css", "utf8").trim()].join("\n") + "\n";
}

rmSync(BUILT, { recursive: true, force: true });
mkdirSync(BUILT, { recursive: true });
const { metafile } = await build({
  entryPoints: ["vendor.src.js"],
  outfile: `${BUILT}/vendor.js`,
  bundle: true,
  format: "esm",
  minify: true,
  target: "es2022",
  legalComments: "none", // THIRD_PARTY_LICENSES.txt has them, whole
  metafile: true,
});
writeFileSync(`${BUILT}/vendor.css`, style());
copyFileSync("vendor.src.js", `${BUILT}/vendor.d.ts`); // the types of what is in there, for tsc
for (const { from, file } of FONTS) copyFileSync(`node_modules/${from}/files/${file}`, `${BUILT}/${file}`);
const names = [...bundled(metafile.inputs), ...FONTS.map(({ from }) => from)].sort();
writeFileSync(`${BUILT}/THIRD_PARTY_LICENSES.txt`, names.map(licence).join(`\n${"-".repeat(100)}\n\n`));
rmSync(OUT, { recursive: true, force: true });
renameSync(BUILT, OUT);
console.log(`${OUT}: ${names.join(", ")}`);
