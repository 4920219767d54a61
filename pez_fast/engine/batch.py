"""All prompts that are learned at one time, in one batch, whose places are filled again as they become free."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pez_fast import ops
from pez_fast.engine.cohort import Cohort, Part, Settings
from pez_fast.engine.steps import Encode
from pez_fast.functional import project
from pez_fast.memory import out_of_memory
from pez_fast.table import TokenTable

Take = Callable[[int], Part | None]  # up to so many prompts that wait, at least one target's; None: there are no more

_PATIENCE_EVERY = 8  # steps between looks at which prompts are finished
WARM = 3  # steps made before one is captured


class Engine:
    """Learns prompts in batches of up to `at_once`; what waits is taken when at least half of the places are free.

    Every prompt is learned as if it were alone, so that nothing depends on what shares its batch. Nothing in a step waits
    for the device. On a GPU a step is captured as a CUDA graph where the implementation of the projection can be. Where
    memory runs out, `at_once` is halved and what was being learned begins anew.

    Args:
        encode: (A, L, d) token embeddings -> features, each row's independent of the others.
        take: gives what waits.
        each: prompts of one target, which are never parted.
        callback: called at every `every`-th step of each cohort and after its last, with the cohorts in work; True ends all.
    """

    def __init__(
        self,
        table: TokenTable,
        encode: Encode,
        take: Take,
        settings: Settings,
        at_once: int,
        each: int = 1,
        every: int = 50,
        callback: Callable[[Sequence[Cohort]], object] | None = None,
    ) -> None:
        self.table, self.encode, self.take, self.settings = table, encode, take, settings
        self.at_once, self.each, self.every, self.callback = at_once, each, every, callback
        self.cohorts: list[Cohort] = []
        self.ended: str | None = None  # why all was ended before its time
        self._again: deque[Part] = deque()
        self._dry = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._made = 0  # steps of the present cohorts, not captured

    def run(self) -> Iterator[Cohort]:
        """Cohorts, each when all of its prompts have ended; those in work too after Ctrl-C."""
        while self._fill():
            short = False
            try:
                self._advance(self._until_next_look())
                asked = self._report()
                self._look(asked)
            except KeyboardInterrupt:
                if not any(c.number for c in self.cohorts):
                    raise
                self._end("interrupt")
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error) or not self._can_shrink():
                    raise
                short = True
            if short:  # behind the handler, which would keep alive what the error refers to
                self._begin_anew()
            finished = [c for c in self.cohorts if all(c.stopped)]
            if finished:
                self._change([c for c in self.cohorts if not all(c.stopped)])
                yield from finished

    def _fill(self) -> bool:
        """Take what waits if half of the places are free; whether there is anything to learn."""
        busy = sum(len(c.rows) for c in self.cohorts)
        while not self.ended and (not busy or (2 * busy <= self.at_once and busy + self.each <= self.at_once)):
            part = self._again.popleft() if self._again else None if self._dry else self.take(self.at_once - busy)
            if part is None:
                self._dry = True
                break
            while len(part.names) > 1 and len(part.start) > self.at_once - busy:
                part, rest = part.halves()
                self._again.appendleft(rest)
            self._change([*self.cohorts, Cohort(part, self.table, self.settings)])
            busy += len(part.start)
        return bool(self.cohorts)

    def _change(self, cohorts: list[Cohort]) -> None:
        self.cohorts, self._graph, self._made = cohorts, None, 0

    def _until_next_look(self) -> int:
        """Steps after which somebody wants to look, or a cohort has had all."""
        wanted = [c.left for c in self.cohorts]
        if self.callback is not None:  # after the steps 1, 1 + every, …: where 0, every, … updates have been made
            wanted += [self.every - (c.number - 1) % self.every for c in self.cohorts]
        if self.settings.patience is not None:
            wanted += [_PATIENCE_EVERY - c.number % _PATIENCE_EVERY for c in self.cohorts]
        return min(wanted)

    def _advance(self, steps: int) -> None:
        device = self.table.device
        capture = device.type == "cuda" and ops.capturable(self.settings.impl, device)
        for _ in range(steps):
            last = all(c.left == 1 for c in self.cohorts)
            if last or not capture or self._made < WARM:
                self._step(update=not last)
                self._made += 1
            else:
                self._replay()
            for cohort in self.cohorts:
                cohort.number += 1

    def _step(self, update: bool = True) -> None:
        """One projection of every prompt, kept where it is better; and the update after it."""
        prompts = [c.opt.prompts for c in self.cohorts]
        sizes = [len(p) for p in prompts]

        def each(together: Tensor) -> Sequence[Tensor]:
            return together.split(sizes) if len(sizes) > 1 else (together,)

        with torch.set_grad_enabled(update):
            hard, ids = project(torch.cat(prompts) if len(prompts) > 1 else prompts[0], self.table, self.settings.impl)
            judged = [c.objective(part) for c, part in zip(self.cohorts, each(self.encode(hard)), strict=True)]
        for cohort, own, (_, score) in zip(self.cohorts, each(ids), judged, strict=True):
            cohort.record(own, score)
        if update:
            torch.autograd.backward([loss for loss, _ in judged])
            for cohort in self.cohorts:
                cohort.update()

    def _replay(self) -> None:
        """The step as a CUDA graph, captured when it is first wanted."""
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step()
        self._graph.replay()

    def _report(self) -> bool:
        """Call the callback where it is time; whether it asks for the end."""
        due = any((c.number - 1) % self.every == 0 or not c.left for c in self.cohorts)
        return self.callback is not None and due and self.callback(self.cohorts) is True

    def _look(self, asked: bool) -> None:
        """End what is finished, and learn on without it when that is half of the batch."""
        if asked:
            self._end("callback")
            return
        if self.settings.patience is None:
            for cohort in self.cohorts:
                if not cohort.left:
                    cohort.end([True] * len(cohort.rows), "steps")
            return
        active = fetch([c.active for c in self.cohorts])
        for cohort, own in zip(self.cohorts, active, strict=True):
            cohort.end(own, None if cohort.left else "steps")
        if 2 * sum(map(sum, active)) <= sum(map(len, active)):
            for cohort, own in zip(self.cohorts, active, strict=True):
                if any(own) and not all(own) and cohort.left:
                    cohort.keep(own)
            self._change(self.cohorts)

    def _end(self, why: str) -> None:
        self.ended = why
        for cohort, active in zip(self.cohorts, fetch([c.active for c in self.cohorts]), strict=True):
            cohort.end(active, why if cohort.left else "steps")

    def _can_shrink(self) -> bool:
        return sum(len(c.part.names) for c in self.cohorts) > 1

    def _begin_anew(self) -> None:
        targets = sum(len(c.part.names) for c in self.cohorts)
        rows = sum(len(c.part.start) for c in self.cohorts)
        self.at_once = rows // targets * ((targets + 1) // 2)
        self._again.extendleft(c.part for c in reversed(self.cohorts))
        self._change([])


def fetch(values: Sequence[Tensor]) -> list[list]:
    """Vectors of one dtype as lists, by one copy from the device."""
    joined = torch.cat(list(values)).detach()
    if joined.is_cuda:
        pinned = torch.empty(joined.shape, dtype=joined.dtype, pin_memory=True)
        pinned.copy_(joined, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        done.synchronize()
        joined = pinned
    return [part.tolist() for part in joined.split([len(v) for v in values])]


def search(
    part: Part,
    table: TokenTable,
    encode: Encode,
    settings: Settings,
    every: int = 50,
    callback: Callable[[Cohort], object] | None = None,
) -> Cohort:
    """Learn the prompts of one part, all at once; `callback` sees them as `Engine` says."""
    waiting = [part]
    report = None if callback is None else lambda cohorts: callback(cohorts[0])
    (found,) = Engine(
        table,
        encode,
        lambda most: waiting.pop() if waiting else None,
        settings,
        len(part.start),
        every=every,
        callback=report,
    ).run()
    return found
