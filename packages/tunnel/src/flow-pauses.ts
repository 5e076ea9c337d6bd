/**
 * How often reading from a socket was stopped because the other side did not take what came, of all connections of this
 * process. One number for all: a label for each listener would say little more, and would put a look-up into the data path.
 */
export const flowPauses = { total: 0 };
