// Builds the plugin: `node build.js OUT.wasm`. The runtime of JavaScript has no module loader, so the
// SDK and the transform become one source text.
import { readFile, writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { componentize } from '@bytecodealliance/componentize-js';

const sdk = (await readFile('trunkline_plugin.js', 'utf8')).replace(/^export /gm, '');
const app = (await readFile('app.js', 'utf8')).replace(/^import .* from '\.\/trunkline_plugin\.js';$/m, '');
const { component } = await componentize(`${sdk}\n${app}`, {
  witPath: resolve('wit'),
  worldName: 'transform',
  disableFeatures: ['http', 'fetch-event', 'stdio', 'random', 'clocks'],
});
await writeFile(process.argv[2] ?? '@NAME@.wasm', component);
