// Builds the plugin: `node build.js OUT.wasm [WORLD]`. The runtime of JavaScript has no module loader, so
// the SDK and the transform become one source text. The world `stateful` has state, and `timed` timers, too.
import { readFile, writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { componentize } from '@bytecodealliance/componentize-js';

const sdk = (await readFile('trunkline_plugin.js', 'utf8')).replace(/^export /gm, '');
const app = (await readFile('app.js', 'utf8')).replace(/^import .* from '\.\/trunkline_plugin\.js';$/m, '');
const worldName = process.argv[3] ?? 'transform';
const imported = (name, worlds) =>
  worlds.includes(worldName)
    ? `import * as host${name} from 'trunkline:transform/${name.toLowerCase()}@1.1.0';`
    : `const host${name} = undefined;`;
const state = `${imported('State', ['stateful', 'timed'])}\n${imported('Timers', ['timed'])}`;
const inputs = "import { declare as declareInputs } from 'trunkline:transform/inputs@1.1.0';";
const { component } = await componentize(`${inputs}\n${state}\n${sdk}\n${app}`, {
  witPath: resolve('wit'),
  worldName,
  disableFeatures: ['http', 'fetch-event', 'stdio', 'random', 'clocks'],
});
await writeFile(process.argv[2] ?? '@NAME@.wasm', component);
