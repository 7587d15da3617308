"""Phoenix messages: 85 to 106."""

from __future__ import annotations

import json

from tests.badinput.ground import Ground, Wire
from tests.badinput.table import row
from tests.integration.rawclient import TEXT, frame

ECHO = ["1", "7", "room:1", "echo", {"n": 1}]


def survives(ground: Ground, *texts: str) -> None:
    """Send texts that are no messages, fewer than ten: they are dropped, and the connection lives."""
    assert len(texts) < 10
    with ground.joined() as wire:
        for text in texts:
            wire.text(text)
        assert wire.beats()


def refused(wire: Wire, topic: object, event: object, payload: object, reason: str) -> None:
    """Send a message that must be refused for a reason, by a server that goes on."""
    answer = wire.ask(topic, event, payload)
    assert (answer["status"], answer["response"]["reason"]) == ("error", reason), answer


@row(85, "no JSON, nothing, a BOM, something behind it")
def _(ground: Ground) -> None:
    survives(ground, "nonsense", "", "\ufeff[]", f"{json.dumps(ECHO)} x", "[", "\0")
    with ground.joined() as wire:
        wire.send(frame(TEXT, b"nonsense") * 10)
        assert wire.closed() == 1008


@row(86, "an object, or another number of parts")
def _(ground: Ground) -> None:
    survives(ground, "{}", "[]", '["1","2","room:1","echo"]', '{"topic":"room:1"}', "7", "null")
    with ground.joined() as wire:
        # What follows the fifth is ignored, as Phoenix does.
        wire.text([*ECHO, "more"])
        assert wire.message()[4]["status"] == "ok"


@row(87, "other types than they should be")
def _(ground: Ground) -> None:
    survives(
        ground,
        '["1","2",{},"echo",{}]',
        '["1","2","room:1",[],{}]',
        '["1","2",["room:1"],"echo",{}]',
        '["1","2","room:1",{"a":1},{}]',
    )
    with ground.joined() as wire:
        for topic in (7, None):
            wire.text(["1", "odd", topic, "echo", {}])
            assert wire.message()[4]["response"] == {"reason": "unmatched topic"}


@row(88, "JSON that is nested 30,000 deep")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        for deep in ("[" * 30_000 + "]" * 30_000, '{"a":' * 8_000 + "1" + "}" * 8_000):
            wire.text(f'["1","deep","room:1","echo",{deep}]')
        assert wire.beats()


@row(89, "an integer of 5,000 digits")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        wire.text(f'["1","long","room:1","echo",{"1" * 5_000}]')
        assert wire.beats()


@row(90, "numbers that are none")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        for number in ("NaN", "Infinity", "-Infinity", "1e999"):
            wire.text(f'["1","nan","room:1","echo",{{"n":{number}}}]')
        assert wire.beats()
        assert "NaN" not in json.dumps(wire.ask("room:1", "echo", {"n": 1}))


@row(91, "lone surrogates and NUL")
def _(ground: Ground) -> None:
    with ground.joined("user:alice") as wire:
        for text in ('"\\ud800"', '"\\u0000"'):
            wire.text(f'["1","odd","user:alice","subscribe",{{"types":[{text}]}}]')
            answer = wire.message()[4] if text != '"\\ud800"' else None
            assert answer is None or answer["response"]["reason"] == "invalid_payload", answer
        assert wire.beats()
    for payload in (b'{"user_ids":["alice"],"type":"t","payload":"\\ud800"}', {"a": "\0"}):
        answer = ground.push(payload) if isinstance(payload, bytes) else ground.push(payload=payload)
        assert (answer.status, answer.json["error"]) == (422, "invalid_payload")


@row(92, "names twice, __proto__, very many")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        wire.text('["1","twice","room:1","echo",{"a":1,"a":2}]')
        assert wire.message()[4]["status"] in ("ok", "error")
        assert wire.ask("room:1", "echo", {"__proto__": {"x": 1}})["response"] == {"__proto__": {"x": 1}}
        refused(wire, "room:1", "echo", {str(n): n for n in range(3_000)}, "invalid_payload")
        assert wire.beats()


@row(93, "a flat list of very many")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        refused(wire, "room:1", "echo", [[] for _ in range(16_000)], "invalid_payload")


@row(94, "topics of others, and names that look like one's own")
def _(ground: Ground) -> None:
    with ground.joined("user:alice") as wire:
        for topic in ("user:bob", "user:*", "user:ALICE", "user:alice\u200b", "user:alice ", "user:"):
            answer = wire.ask(topic, "phx_join")
            assert answer["status"] == "error", topic
        assert wire.ask("USER:alice", "phx_join")["response"] == {"reason": "unmatched topic"}
        assert wire.ask("x" * 4_096, "phx_join")["response"] == {"reason": "unmatched topic"}


@row(95, "a topic that is not joined, and another join's ref")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        assert wire.ask("room:2", "echo")["response"] == {"reason": "unmatched topic"}
        wire.text(["stale", "7", "room:1", "echo", {}])
        wire.text([None, "beat", "phoenix", "heartbeat", {}])
        assert wire.message()[1] == "beat"


@row(96, "a flood of joins, and more topics than one may have")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        for number in range(300):
            wire.text([str(number), f"j{number}", f"room:{number}-96", "phx_join", {}])
        reasons = set()
        try:
            for _ in range(300):
                answer = wire.message()[4]
                if answer["status"] == "error":
                    reasons.add(answer["response"]["reason"])
        except AssertionError as closed:
            reasons.add(str(closed)[:11])
        assert reasons <= {"rate_limited", "too many channels joined", "closed with"}
        assert reasons


@row(97, "the same topic joined twice: the old one is closed")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        wire.text(["2", "again", "room:1", "phx_join", {}])
        events = [wire.message() for _ in range(2)]
        assert [(one[0], one[3]) for one in events] == [("2", "phx_reply"), ("1", "phx_close")]
        assert wire.ask("room:1", "echo", {"n": 2}, join_ref="2")["response"] == {"n": 2}


@row(98, "a ref twice: both are answered")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        wire.text(ECHO)
        wire.text(ECHO)
        assert [wire.message()[1] for _ in range(2)] == ["7", "7"]


@row(99, "a ref of 10 KB, and one of other characters")
def _(ground: Ground) -> None:
    survives(ground, json.dumps(["1", "r" * 10_240, "room:1", "echo", {}]))
    with ground.joined() as wire:
        wire.text(["1", "réf ☃", "room:1", "echo", {}])
        assert wire.message()[1] == "réf ☃"


@row(100, "events that only a server may send")
def _(ground: Ground) -> None:
    for event in ("phx_reply", "phx_close", "phx_error"):
        with ground.joined() as wire:
            wire.text(["1", "odd", "room:1", event, {"status": "ok"}])
            # The channel ends as after a crash, and only the channel.
            assert wire.message()[3] == "phx_error"
            assert wire.beats()


@row(101, "a heartbeat with a payload, and one on another topic")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        assert wire.ask("phoenix", "heartbeat", {"a": [1]})["status"] == "ok"
        assert wire.ask("room:9", "heartbeat")["response"] == {"reason": "unmatched topic"}


@row(102, "an ack of what is unknown, to come, negative, 2^63")
def _(ground: Ground) -> None:
    with ground.joined("user:alice") as wire:
        for seq in (10**6, -1, 2**63, "1", None, 1.5, [1]):
            refused(wire, "user:alice", "ack", {"seq": seq}, "invalid_payload")
        ids = ["00000000-0000-4000-8000-000000000000", "x", 7]
        refused(wire, "user:alice", "mark_read", {"ids": ids}, "invalid_payload")
        assert wire.ask("user:alice", "mark_read", {"ids": ids[:1]})["status"] == "ok"


@row(103, "an ack twice")
def _(ground: Ground) -> None:
    assert ground.push(user_ids=["frank"]).status == 202
    with ground.joined("user:frank", "frank") as wire:
        for _ in range(3):
            assert wire.ask("user:frank", "ack", {"seq": 1}) == {"status": "ok", "response": {}}


@row(104, "a resume with a seq that is no number, foreign or to come")
def _(ground: Ground) -> None:
    with ground.joined("room:1", "grace") as wire:
        odd: tuple[object, ...] = ("1", -1, 2**63, 1.5, [], {"seq": 1})
        for last_seq in odd:
            refused(wire, "user:grace", "phx_join", {"last_seq": last_seq}, "invalid_payload")
        answer = wire.ask("user:grace", "phx_join", {"last_seq": 10**9, "session_id": "x" * 60_000})
        assert (answer["status"], answer["response"]["resumed"]) == ("ok", False)


@row(105, "two tabs resume at the same time: each gets all that is for it")
def _(ground: Ground) -> None:
    assert ground.push(user_ids=["heidi"]).status == 202
    with ground.joined("room:1", "heidi") as one, ground.joined("room:1", "heidi") as other:
        for wire in (one, other):
            wire.text(["5", "j", "user:heidi", "phx_join", {"last_seq": 0}])
        for wire in (one, other):
            got = [wire.message() for _ in range(2)]
            assert [message[3] for message in got] == ["phx_reply", "notification"]
        answer = ground.api("GET", "/api/sessions/heidi").json
        assert len(answer["connections"]) == 2


@row(106, "a broadcast from a client")
def _(ground: Ground) -> None:
    for topic, event in (("users:online", "presence_diff"), ("user:alice", "notification")):
        with ground.joined(topic) as wire:
            wire.text(["1", "odd", topic, event, {"joins": {}, "leaves": {}}])
            while (message := wire.message())[3] not in ("phx_error", "phx_reply"):
                pass
            assert message[3] == "phx_error" or message[4]["status"] == "error"
