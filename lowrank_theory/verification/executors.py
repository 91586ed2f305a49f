"""Where functions run: in this process, in others of this computer, or on a cluster."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from typing import Any

from lowrank_theory._fingerprint import fingerprint
from lowrank_theory._numerics import check_count


class LostWorkerError(RuntimeError):
    """A worker ended before its work did."""


class Here(Executor):
    """Runs a function in this process, as soon as it is submitted."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """The function is called at once; what it raises is raised here."""
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextlib.contextmanager
def processes(workers: int) -> Iterator[Executor]:
    """Processes of this computer, each with one thread for BLAS.

    They are spawned, since a process that has computed with JAX cannot be forked: a script that
    uses them begins its own work under `if __name__ == "__main__":`. They end with this process,
    however it ends.
    """
    others = multiprocessing.active_children()
    pool = concurrent.futures.ProcessPoolExecutor(
        check_count("workers", workers, 1), multiprocessing.get_context("spawn"), _prepare
    )
    with _environment(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"):
        for _ in range(workers):
            pool.submit(os.getpid)  # starts one each, since none is idle yet
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - set(others):
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    """An interruption is the parent's affair; its end is the worker's."""
    fingerprint()  # of the sources as they were when the worker began
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def cluster(address: str, *, seconds: float = 10) -> Iterator[Executor]:
    """The workers of a Dask scheduler, such as `tcp://10.0.0.1:8786`.

    Raises `ValueError` where `distributed` is not installed (the extra `cluster`), the address is
    none, or no scheduler answers within so many seconds.
    """
    url = urllib.parse.urlsplit(address)
    try:
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if not (url.scheme and host and port):
        raise ValueError(f"A scheduler is `tcp://host:port` or `tls://host:port`; got {address!r}.")
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ValueError(
            f"A scheduler needs the extra `cluster` ({error}): install `lowrank_theory[cluster]`."
        ) from None
    try:
        # A client that fails to connect may keep its thread, and this process, for minutes.
        socket.create_connection((host, port), seconds).close()
        client = Client(address, timeout=seconds, set_as_default=False)
    except (OSError, ValueError, AssertionError) as error:  # asserts that its thread has begun
        raise ValueError(f"No scheduler answers at {address!r}: {error}.") from None
    with client, client.get_executor(pure=False) as executor:
        yield executor


def each(jobs: Mapping[str, Callable[[], Any]], executor: Executor) -> Iterator[tuple[str, Any]]:
    """What each of the jobs returns, as they end. Raises `LostWorkerError` as `sweep` does."""
    if isinstance(executor, Here):
        yield from ((name, job()) for name, job in jobs.items())
        return
    names = {executor.submit(job): name for name, job in jobs.items()}
    try:
        with lost_workers():
            for future in concurrent.futures.as_completed(names):
                yield names[future], future.result()
    finally:
        for future in names:
            future.cancel()


@contextlib.contextmanager
def lost_workers() -> Iterator[None]:
    """Tell a lost worker by `LostWorkerError`, whatever runs the workers."""
    losses = [concurrent.futures.BrokenExecutor, concurrent.futures.CancelledError]
    if distributed := sys.modules.get("distributed"):
        losses.append(distributed.KilledWorker)
    try:
        yield
    except tuple(losses) as error:
        raise LostWorkerError(
            f"A worker ended before its work did ({type(error).__name__}). Finished points are "
            "kept where there is a folder for them: the same again goes on from there."
        ) from error
