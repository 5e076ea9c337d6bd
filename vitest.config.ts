import { defineConfig } from "vitest/config";

const source = (name: string) => new URL(`packages/${name}/src/index.ts`, import.meta.url).pathname;
const alias = Object.fromEntries(
  ["protocol", "tunnel", "host", "edge", "agent"].map((name) => [`@sallyport/${name}`, source(name)]),
);

/**
 * `unit` stands beside the code and in `test/` and resolves packages to their source, so that it needs no build. The
 * others start the built programs as processes. `fault` and `soak` take minutes and are no part of `npm test`.
 */
export default defineConfig({
  test: {
    projects: [
      {
        resolve: { alias },
        test: {
          name: "unit",
          include: ["packages/*/src/**/*.test.ts", "test/{property,fuzz,vectors}/**/*.test.ts"],
          testTimeout: 30_000,
        },
      },
      {
        resolve: { alias },
        test: {
          name: "e2e",
          include: ["test/{e2e,hostile,docs}/**/*.test.ts"],
          testTimeout: 60_000,
          hookTimeout: 60_000,
        },
      },
      {
        resolve: { alias },
        test: {
          name: "real",
          include: ["test/real/**/*.test.ts"],
          testTimeout: 180_000,
          hookTimeout: 120_000,
          fileParallelism: false,
        },
      },
      {
        resolve: { alias },
        test: {
          name: "fault",
          include: ["test/fault/**/*.test.ts"],
          testTimeout: 180_000,
          hookTimeout: 60_000,
          fileParallelism: false,
        },
      },
      {
        resolve: { alias },
        test: {
          name: "soak",
          include: ["test/soak/**/*.test.ts"],
          // A day: the test itself knows how long it runs.
          testTimeout: 86_400_000,
          hookTimeout: 60_000,
        },
      },
    ],
  },
});
