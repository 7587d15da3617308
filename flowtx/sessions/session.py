"""A Session: what the server keeps of one signed-in user, over all their connections.

Its life is the machine in `flowtx.sessions.machine`. It has one timer at a time: while it starts, a
bound on that; while it is ready, the idle timeout; while it is away, the reconnection window. The
idle timer is set anew only when it fires, so that a message costs it nothing. What few Sessions need
at a time is made when it is needed, as there may be fifty thousand of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from flowtx.channels.socket import Socket
from flowtx.errors import FlowtxError, Refused, Unavailable
from flowtx.ids import new_id
from flowtx.interfaces import Principal, User
from flowtx.oneshot import OneShot
from flowtx.protocol.close import (
    DISCONNECT,
    DRAIN,
    IDLE_TIMEOUT,
    INTERNAL_ERROR,
    REPLACED,
    SESSION_STOPPED,
    Close,
)
from flowtx.protocol.message import Broadcast
from flowtx.sessions.machine import ENDING, Event, State, after
from flowtx.sessions.missed import MissedEvents
from flowtx.sessions.start import START_TIMEOUT, Start, tell_closing
from flowtx.sessions.supervision import Supervised
from flowtx.sessions.surroundings import Limits, Surroundings, socket_topic, user_topic

__all__ = ["Limits", "Session", "Surroundings", "socket_topic", "user_topic"]


class Session(Supervised):
    """One per user; made and kept by `flowtx.sessions.service.SessionService`.

    Attributes:
        user_id: the user's id; also the service's name.
        session_id: names this Session, among all that the user has had.
        user: the user, once ready.
        state: where in its life it is.
        reason: why it ends, once it does: a word for the history and the metrics.
        sockets: the user's connections that are open, the oldest first.
        started_at: seconds of the clock.
        connections: how many connections it has had.
        told: how many of the observers have been told of it.
    """

    def __init__(self, principal: Principal, surroundings: Surroundings) -> None:
        super().__init__(principal.user_id, surroundings.clock)
        self.user_id = principal.user_id
        self.session_id = new_id()
        self.user: User | None = None
        self.state = State.STARTING
        self.reason = ""
        self.sockets: list[Socket] = []
        self.started_at = surroundings.clock.seconds()
        self.connections = 0
        self.told = 0
        self._principal = principal
        self._around = surroundings
        self._handshakes = 0
        self._claims = 0
        self._messages = 0
        self._active_at = self._left_at = self.started_at
        self._timer: IDelayedCall | None = None
        self._start: Start | None = None
        self._ready: OneShot | None = None
        self._stopped: OneShot | None = None
        self._unclaimed: OneShot | None = None
        self._missed: MissedEvents | None = None

    # The start

    def startService(self) -> None:
        """Begin to look the user up; `when_ready` tells how that ended."""
        super().startService()
        self._log.info("Starting session for user: {user_id}", user_id=self.user_id)
        self._around.pubsub.subscribe(socket_topic(self.user_id), self)
        self._load()

    def when_ready(self) -> Deferred[None]:
        """Wait while the Session starts, or is restarted.

        Returns:
            A Deferred that fires with None when it does so no longer, whether it is ready then or
            ends; or fails with `Refused` for an unknown user, and with `StorageError` where the
            directory cannot be asked. Each call gives a new one.
        """
        if self.state is not State.STARTING:
            return succeed(None)
        if self._ready is None:
            self._ready = OneShot()
        return self._ready.when_fired()

    def _load(self) -> None:
        start = self._start = Start(self, self._principal, self._around, self._loaded)
        start.begin()
        if self._start is start:
            self._set_timer(START_TIMEOUT)

    def _loaded(self, failure: Failure | None) -> None:
        if failure is None:
            self._start = None
            self._stop_timer()
            self._apply(Event.LOADED)
            if self._claims:
                self._watch_idleness()
            else:
                self._leave()
            self._tell_ready()
        elif isinstance(failure.value, FlowtxError):
            gone = isinstance(failure.value, Refused) and failure.value.status == 403
            self._end(Event.REFUSED, "refused", SESSION_STOPPED if gone else INTERNAL_ERROR, failure)
        else:
            self.crashed(failure)

    def _tell_ready(self, outcome: Failure | None = None) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            ready.fire(outcome)

    # Its connections

    @property
    def devices(self) -> int:
        """How many connections the user has, those in their handshake among them."""
        return self._handshakes + len(self.sockets)

    def claim(self) -> None:
        """Keep the Session alive for one connection, from its handshake on."""
        was_away = self.state is State.AWAY
        self._apply(Event.CLAIMED)
        self._claims += 1
        self._handshakes += 1
        self._active_at = self._clock.seconds()
        if was_away:
            self._watch_idleness()

    def attach(self, socket: Socket) -> None:
        """Count an open connection among the user's; past ``max_devices`` the oldest is closed."""
        self._handshakes -= 1
        self.connections += 1
        if self.state in ENDING:
            socket.close(DRAIN)
            return
        self.sockets.append(socket)
        socket.when_closing(self._closing)
        if len(self.sockets) > self._around.limits.max_devices:
            self.sockets[0].close(REPLACED)

    def _closing(self, socket: Socket, close: Close | None) -> None:
        """Note that nothing reaches a client any more; its channels are still to end."""
        self.sockets.remove(socket)
        self._messages += socket.messages_received
        self._active_at = max(self._active_at, socket.last_activity_at)
        if self.sockets:
            return
        self._left_at = self._clock.seconds()
        if self._missed is None and self.state not in ENDING:
            self._missed = MissedEvents(self._around.pubsub, user_topic(self.user_id), close)

    def release(self, socket: Socket | None) -> None:
        """Undo a `claim`, and the `attach` of its connection, if it came to that."""
        if socket is None:
            self._handshakes -= 1
        else:
            socket.closing(None)
        self._claims -= 1
        if self._claims:
            return
        if self.connections == 0:
            self._end(Event.ABANDONED, "abandoned", SESSION_STOPPED)
        else:
            self._leave()
        if self._unclaimed is not None:
            self._unclaimed.fire()

    def _leave(self) -> None:
        self._apply(Event.LEFT)
        if self.state is State.AWAY:
            # From the end of the last connection, however long its channels took to end.
            self._set_timer(self._left_at + self._around.limits.reconnect_window - self._clock.seconds())

    def take_missed(self, socket: Socket) -> Sequence[Broadcast] | None:
        """Take what was sent to the user while no connection of theirs was open, in order.

        Args:
            socket: the connection that asks; the first to ask after such a time gets it.

        Returns:
            None where there was no such time, or where not all is there: it was more than is kept,
            or the last connection had gone silent before it was closed.
        """
        if self._missed is None or socket not in self.sockets:
            return None
        missed, self._missed = self._missed, None
        return missed.take()

    def deliver(self, broadcast: Broadcast) -> None:
        """Take a broadcast to the user's connections as such: ``disconnect`` closes them."""
        if broadcast.event == "disconnect":
            self.close_connections(DISCONNECT)

    def close_connections(self, close: Close, which: Callable[[Socket], bool] | None = None) -> int:
        """Close the user's connections, or some of them; how many."""
        closing = [socket for socket in self.sockets if which is None or which(socket)]
        for socket in closing:
            socket.close(close)
        return len(closing)

    # Time

    @property
    def age(self) -> float:
        """For how many seconds it has lasted."""
        return self._clock.seconds() - self.started_at

    @property
    def messages_received(self) -> int:
        """How many messages the user's clients have sent."""
        return sum((socket.messages_received for socket in self.sockets), self._messages)

    @property
    def last_activity_at(self) -> float:
        """When a client of the user's last did anything, seconds of the clock."""
        return max([self._active_at, *(socket.last_activity_at for socket in self.sockets)])

    def _watch_idleness(self) -> None:
        self._set_timer(self.last_activity_at + self._around.limits.idle_timeout - self._clock.seconds())

    def _set_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self._clock.callLater(max(0.0, seconds), self._tick)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _tick(self) -> None:
        self._timer = None
        if self.state is State.STARTING:
            self._loaded(Failure(Unavailable(f"a Session was not ready within {START_TIMEOUT:.0f} s")))
        elif self.state is State.AWAY:
            self._end(Event.ENDED, "window_expired", SESSION_STOPPED)
        elif self.last_activity_at + self._around.limits.idle_timeout > self._clock.seconds():
            self._watch_idleness()
        else:
            self._end(Event.ENDED, "idle_timeout", IDLE_TIMEOUT)

    # Its crashes

    def _ends(self) -> bool:
        return self.state in ENDING

    def _note_crash(self) -> None:
        self._apply(Event.CRASHED)

    def _give_up(self) -> None:
        self._around.given_up(self.user_id)
        self._end(Event.ENDED, "crashed", INTERNAL_ERROR)

    def _restart(self) -> None:
        restarts = self.restarts
        self._around.restarted()
        self._halt()
        for socket in tuple(self.sockets):
            socket.crash_channels()
        # The end of a channel may have ended the Session, or have crashed it again.
        if self.state is State.STARTING and self.restarts == restarts:
            self._load()

    def _halt(self) -> None:
        """Stop all that is under way."""
        self._stop_timer()
        start, self._start = self._start, None
        if start is not None:
            start.cancel()
        self._cancel_tasks()

    # The end

    def end(self, reason: str = "session_stopped", close: Close = SESSION_STOPPED) -> Deferred[None]:
        """End the Session: close its connections, wait for them to go, tear down.

        Args:
            reason: a word for the history and the metrics.
            close: what the connections are told.

        Returns:
            A Deferred that fires with None when the teardown has finished; it does not fail. Each
            call gives a new one, of the same end.
        """
        self._end(Event.ENDED, reason, close)
        return self.when_stopped()

    def stopService(self) -> Deferred[None]:
        """End because the server does; see `end`."""
        return self.end("drain", DRAIN)

    def when_stopped(self) -> Deferred[None]:
        """Wait for the teardown to have finished; see `end`."""
        if self.state is State.STOPPED:
            return succeed(None)
        if self._stopped is None:
            self._stopped = OneShot()
        return self._stopped.when_fired()

    def _end(self, event: Event, reason: str, close: Close, outcome: Failure | None = None) -> None:
        before = self.state
        self._apply(event)
        if before in ENDING:
            return
        self.reason = reason
        self._halt()
        missed, self._missed = self._missed, None
        if missed is not None:
            missed.take()
        Deferred.fromCoroutine(self._tear_down(close)).addBoth(self._torn_down)
        self._tell_ready(outcome)

    async def _tear_down(self, close: Close) -> None:
        if self._claims:
            self._unclaimed = OneShot()
            self.close_connections(close)
            await self._unclaimed.when_fired()
        if self.user is not None:
            await tell_closing(self, self._around.observers[: self.told])

    def _torn_down(self, result: object) -> None:
        if isinstance(result, Failure):
            self._log.failure("Session of {user_id} did not end cleanly", result, user_id=self.user_id)
        self._around.pubsub.unsubscribe(socket_topic(self.user_id), self)
        self.running = False
        self._apply(Event.TORN_DOWN)
        self._around.ended(self)
        if self._stopped is not None:
            self._stopped.fire()

    def _apply(self, event: Event) -> None:
        self.state = after(self.state, event)
