import { CommanderError, InvalidArgumentError } from "commander";
import { afterEach, expect, test, vi } from "vitest";
import { program } from "./command-line.ts";
import { Failure } from "./failure.ts";

afterEach(() => {
  vi.restoreAllMocks();
});

const run = vi.fn();

async function parse(...args: string[]): Promise<unknown> {
  const root = program("sallyport-edge", "An edge.");
  root
    .command("serve")
    .option("--config <file>", "file", "edge.yaml")
    .action((options: unknown) => run("serve", options));
  root
    .command("pair <client>")
    .requiredOption("--config <file>", "file")
    .option("--port <n>", "port", (text) => {
      if (text !== "22") {
        throw new InvalidArgumentError("port must be 1-65535");
      }
      return 22;
    })
    .action((client: string) => run("pair", client));
  const client = root.command("client").description("clients");
  client.command("revoke <client> [token]").action(() => run("revoke"));
  return root.parseAsync(args, { from: "user" }).then(
    () => undefined,
    (error: unknown) => error,
  );
}

const SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I";
const NO_SECRETS = "unknown option; secrets are never taken as options, because other users can see them";

test.each([
  [["serve", "--token", SECRET], `--token: ${NO_SECRETS}`],
  [["serve", `--token=${SECRET}`], `--token: ${NO_SECRETS}`],
  [["--token", SECRET, "serve"], `--token: ${NO_SECRETS}`],
  [["--token", SECRET], `--token: ${NO_SECRETS}`],
  [[`--token=${SECRET}`], `--token: ${NO_SECRETS}`],
  [["pair", "--config", "f", "lan", "--password", SECRET], `--password: ${NO_SECRETS}`],
  [["serve", `-t${SECRET}`], "-t: unknown option; see sallyport-edge --help"],
  [["serve", "-t", SECRET], "-t: unknown option; see sallyport-edge --help"],
  [["serve", `--${SECRET}`], "option: unknown option; see sallyport-edge --help"],
  [["serve", "--confg", SECRET], "--confg: unknown option; did you mean --config?"],
  [["serve", `--confg=${SECRET}`], "--confg: unknown option; did you mean --config?"],
  [["--config", SECRET, "serve"], "--config: is not an option here; see sallyport-edge COMMAND --help"],
  [["client", "--config", SECRET], "--config: is not an option here; see sallyport-edge COMMAND --help"],
  [["serve", "--port", SECRET], "--port: is not an option here; see sallyport-edge COMMAND --help"],
  [["serve", "--config"], "--config: needs a value"],
  [["serve", SECRET], "arguments: too many; see sallyport-edge --help"],
  [["pair", "--config", "f", "lan", SECRET], "arguments: too many; see sallyport-edge --help"],
  [["pair", "lan"], "--config: is required"],
  [["pair", "--config", "f"], "<client>: is required"],
  [["pair", "--config", "f", "lan", "--port", SECRET], "--port: port must be 1-65535"],
  [["pair", "--config", "f", "lan", "--port", `' is invalid. ${SECRET}`], "--port: port must be 1-65535"],
  [["sreve"], "sreve: unknown command; did you mean serve?"],
  [["client", "revok"], "revok: unknown command; did you mean revoke?"],
  [["frobnicate"], "frobnicate: unknown command; see sallyport-edge --help"],
  [[SECRET], "command: unknown command; see sallyport-edge --help"],
  [["sallyport-pair:1:abc:00"], "command: unknown command; see sallyport-edge --help"],
  [[], "sallyport-edge: which command? see sallyport-edge --help"],
  [["client"], "sallyport-edge: which command? see sallyport-edge --help"],
])("%j is a mistake told in one line, without its values", async (args, message) => {
  const stderr = vi.spyOn(process.stderr, "write");
  run.mockClear();
  const error = await parse(...args);
  expect(error).toBeInstanceOf(Failure);
  expect(error).toMatchObject({ exitCode: 64, message });
  expect(stderr).not.toHaveBeenCalled();
  expect(run).not.toHaveBeenCalled();
});

test("a good command line runs its command", async () => {
  run.mockClear();
  expect(await parse("serve", "--config", "x.yaml")).toBeUndefined();
  expect(run).toHaveBeenCalledWith("serve", { config: "x.yaml" });
});

test("a failure of a command passes as it is", async () => {
  run.mockImplementationOnce(() => {
    throw new Failure(69, "admin.sock", "nobody listens");
  });
  expect(await parse("serve")).toMatchObject({ exitCode: 69 });
});

test("help goes to stdout and is no error", async () => {
  const out: string[] = [];
  vi.spyOn(process.stdout, "write").mockImplementation((text) => {
    out.push(String(text));
    return true;
  });
  const error = await parse("--help");
  expect(error).toBeInstanceOf(CommanderError);
  expect(error).toMatchObject({ exitCode: 0 });
  expect(out.join("")).toContain("Usage: sallyport-edge");
  expect(await parse("serve", "--help")).toMatchObject({ exitCode: 0 });
});
