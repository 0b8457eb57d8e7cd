// Adds up what the test runners report.

/** A test says so with a line of this form when the machine or the data for a part of it is absent. */
const NOT_RUN = /^\s*not run: (.+)$/;
const CARGO_RESULT = /^test result: \w+\. (\d+) passed; (\d+) failed;/;
const CARGO_IGNORED = /^test (\S+) \.\.\. ignored(?:, (.+))?$/;

export function createTally() {
  return { passed: 0, failed: 0, failures: [], notRun: [] };
}

/**
 * Adds one runner's numbers. A runner that fails without a failed test (it crashed, or did not
 * compile) counts as one failure, so that nothing that went wrong adds up to zero.
 */
function add(tally, title, result, passed, failed) {
  const failures = result.ok ? failed : Math.max(failed, 1);
  tally.passed += passed;
  tally.failed += failures;
  if (failures > 0) tally.failures.push(`${title}: ${failed > 0 ? `${failed} failed` : result.reason}`);
  // The same lack is often told by several tests.
  for (const line of result.lines) {
    const reason = NOT_RUN.exec(line)?.[1];
    if (reason !== undefined) addNotRun(tally, title, reason);
  }
}

export function addNotRun(tally, title, reason) {
  const text = `${title}: ${reason}`;
  if (!tally.notRun.includes(text)) tally.notRun.push(text);
}

export function addFailure(tally, title, reason) {
  add(tally, title, { ok: false, lines: [], reason }, 0, 0);
}

/** A check without cases of its own: it holds or it does not. */
export function addCheck(tally, title, result) {
  add(tally, title, result, result.ok ? 1 : 0, 0);
}

/** The output of `cargo test`: one result line for each test program. */
export function addCargo(tally, title, result) {
  let passed = 0;
  let failed = 0;
  for (const line of result.lines) {
    const numbers = CARGO_RESULT.exec(line);
    passed += Number(numbers?.[1] ?? 0);
    failed += Number(numbers?.[2] ?? 0);
    const ignored = CARGO_IGNORED.exec(line);
    if (ignored !== null) addNotRun(tally, title, `${ignored[1]}${ignored[2] ? ` (${ignored[2]})` : ''}`);
  }
  add(tally, title, result, passed, failed);
}

/** vitest's JSON report, or undefined when it did not get to write one. */
export function addVitest(tally, title, result, report) {
  add(tally, title, result, report?.numPassedTests ?? 0, report?.numFailedTests ?? 0);
  for (const file of report?.testResults ?? []) {
    for (const test of file.assertionResults) {
      if (test.status !== 'passed' && test.status !== 'failed')
        addNotRun(tally, title, `${test.fullName} (${test.status})`);
    }
  }
}
