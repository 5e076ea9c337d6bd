// Loaded into a program under test (`--require`): SIGUSR2 collects all its garbage, so that what is left is in use.
const { setFlagsFromString } = require("node:v8");
const { runInNewContext } = require("node:vm");

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc");
process.on("SIGUSR2", () => collect());
