import { createHash } from "node:crypto";
import { once } from "node:events";
import { createReadStream } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import type { Socket } from "node:net";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import { runSuccessfully, TestProcess } from "../support/child-process.ts";
import { withDeadline } from "../support/deadline.ts";
import { findFreePort } from "../support/free-port.ts";
import { PseudoRandomBytes } from "../support/prng.ts";
import { describeWithPrograms } from "../support/required-program.ts";
import { ROUTE_MODES, Routes } from "../support/routes.ts";
import type { RouteMode } from "../support/routes.ts";
import { startTcpServer } from "../support/tcp-server.ts";
import type { TcpServer } from "../support/tcp-server.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import type { TempDir } from "../support/temp-dir.ts";

const QUESTION_BYTES = 8 * 1024 * 1024;

type Target = "socat-hasher" | "late-answerer" | "early-ender" | "early-ncat-tunnelled" | "early-ncat-direct";

/** Partners and targets of which one side has ended its direction while the other still talks. */
describeWithPrograms("half-close with socat and ncat", ["socat", "ncat"], (programs) => {
  const partners = {
    // socat would wait only half a second for the answer once its own input has ended.
    socat: (port: number) => ({ command: programs.socat, args: ["-t", "60", "STDIO", `TCP4:127.0.0.1:${port}`] }),
    ncat: (port: number) => ({ command: programs.ncat, args: ["127.0.0.1", String(port)] }),
  };
  const cases = ROUTE_MODES.flatMap((mode) =>
    (["socat", "ncat"] as const).flatMap((partner) =>
      (["socat-hasher", "late-answerer"] as const).map((target) => ({ mode, partner, target })),
    ),
  );

  let directory: TempDir;
  const targetPrograms: TestProcess[] = [];
  const earlyNcats: Partial<Record<RouteMode, TestProcess>> = {};
  const path = (name: string): string => join(directory.path, name);
  let lateAnswerer: TcpServer;
  let earlyEnder: TcpServer;
  let routes: Routes<Target>;
  let question: string;
  let questionSha256: string;
  /** SHA-256 of what the early ender's latest partner sent, once that partner has ended. */
  let earlyEnderHeard: Promise<string>;

  beforeAll(async () => {
    directory = await makeTempDir();
    const source = new PseudoRandomBytes("half-close");
    question = path("question");
    await writeFile(question, source.next(QUESTION_BYTES));
    questionSha256 = source.digest();

    await writeFile(path("farewell"), "farewell");

    // Hashes until its partner ends, and only then has an answer.
    const socatPort = await findFreePort();
    const socatTarget = await TestProcess.start({
      command: programs.socat,
      args: ["-d", "-d", "-t", "60", `TCP4-LISTEN:${socatPort},bind=127.0.0.1,fork,reuseaddr`, "SYSTEM:sha256sum"],
    });
    targetPrograms.push(socatTarget);
    await socatTarget.waitForLine(/listening on/);

    // Each serves one partner: sends its few bytes, ends its direction, and writes down what the partner still says.
    const ncatPorts = { tunnelled: await findFreePort(), direct: await findFreePort() };
    for (const mode of ROUTE_MODES) {
      const ncatTarget = await TestProcess.start({
        command: programs.ncat,
        args: ["-v", "--listen", "127.0.0.1", String(ncatPorts[mode])],
        inputFile: path("farewell"),
        outputFile: path(`heard-${mode}`),
      });
      earlyNcats[mode] = ncatTarget;
      targetPrograms.push(ncatTarget);
      await ncatTarget.waitForLine(/Listening on/);
    }

    // Returns the whole question, but only after the partner's end.
    lateAnswerer = await startTcpServer((socket) => {
      const heard: Buffer[] = [];
      socket.on("data", (bytes) => heard.push(bytes));
      socket.once("end", () => socket.end(Buffer.concat(heard)));
    });
    // Says one word and ends its direction before the partner has begun.
    earlyEnder = await startTcpServer((socket) => {
      earlyEnderHeard = sha256UntilEnd(socket);
      socket.end("farewell");
    });
    routes = await Routes.to({
      "socat-hasher": socatPort,
      "late-answerer": lateAnswerer.port,
      "early-ender": earlyEnder.port,
      "early-ncat-tunnelled": ncatPorts.tunnelled,
      "early-ncat-direct": ncatPorts.direct,
    });
  });

  afterAll(async () => {
    await routes?.stop();
    await Promise.all(targetPrograms.map((program) => program.stop()));
    await Promise.all([lateAnswerer?.close(), earlyEnder?.close()]);
    await directory?.remove();
  });

  it.each(cases)("$partner hears $target in full, which answers after the partner's end, $mode", async (route) => {
    const answer = path("answer");
    await runSuccessfully({
      ...partners[route.partner](routes.port(route.target, route.mode)),
      inputFile: question,
      outputFile: answer,
    });
    const expected = route.target === "late-answerer" ? questionSha256 : sha256OfText(`${questionSha256}  -\n`);
    expect(await sha256OfFile(answer)).toBe(expected);
    await routes.expectCarried(route.target, route.mode, 1);
  });

  /** Hears the farewell and the target's end, and only then, with the target's direction closed, begins to speak. */
  const speakAfterFarewell = async (port: number): Promise<void> => {
    const partner = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    partner.on("error", () => undefined);
    try {
      partner.setEncoding("utf8");
      let heard = "";
      partner.on("data", (text: string) => {
        heard += text;
      });
      await withDeadline(once(partner, "end"), { what: "the target's end" });
      expect(heard).toBe("farewell");
      await withDeadline(pipeline(createReadStream(question), partner), {
        what: "the partner's bytes",
        timeoutMs: 30_000,
      });
      if (!partner.closed) await withDeadline(once(partner, "close"), { what: "the end of the connection" });
    } finally {
      partner.destroy();
    }
  };

  it.each(ROUTE_MODES)("a target that ends first still hears all of its partner, %s", async (mode) => {
    await speakAfterFarewell(routes.port("early-ender", mode));
    expect(await withDeadline(earlyEnderHeard, { what: "the partner's end at the target" })).toBe(questionSha256);
    await routes.expectCarried("early-ender", mode, 1);
  });

  it.each(ROUTE_MODES)("ncat as a target that ends first still hears all of its partner, %s", async (mode) => {
    await speakAfterFarewell(routes.port(`early-ncat-${mode}`, mode));
    expect(await earlyNcats[mode]!.waitForEnd()).toEqual({ code: 0, signal: null });
    expect(await sha256OfFile(path(`heard-${mode}`))).toBe(questionSha256);
  });

  it.each(ROUTE_MODES)("a partner hears a late answer while it stays half-closed, %s", async (mode) => {
    const partner = connect({ port: routes.port("late-answerer", mode), host: "127.0.0.1", allowHalfOpen: true });
    partner.on("error", () => undefined);
    try {
      partner.end("a question");
      expect(await withDeadline(sha256UntilEnd(partner), { what: "the answer" })).toBe(sha256OfText("a question"));
    } finally {
      partner.destroy();
    }
  });
});

/** Resolves with the hash of all bytes once the other side has ended; rejects when the socket fails before. */
async function sha256UntilEnd(socket: Socket): Promise<string> {
  const hash = createHash("sha256");
  socket.on("data", (bytes) => hash.update(bytes));
  await once(socket, "end");
  return hash.digest("hex");
}

async function sha256OfFile(path: string): Promise<string> {
  return createHash("sha256")
    .update(await readFile(path))
    .digest("hex");
}

function sha256OfText(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
