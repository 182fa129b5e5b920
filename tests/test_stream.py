"""The connection state machine against a simulated venue with a simulated clock: no socket, no sleep."""
import heapq
import itertools
import json
import random

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from feedhandler.control import ConnectionPlan, StreamPlan
from feedhandler.venue import Ack, Closing, Complaint, Reply, VenueError
from feedhandler.worker import stream as machine
from feedhandler.worker.pace import CONTROL, OPERATION, SECOND, TEXT, Backoff, Pacer, PermitPool

BINANCE = {"client_msg": {"windows": [{"n": 5, "per_s": 1}], "counts_control_frames": True, "pace_ms": 300},
           "sub": {"ack": "per_request"}, "liveness": {"server_ping": "frame", "server_ping_s": 20},
           "lifetime": {"max_s": 86400}}
OKX = {"client_msg": {"windows": [{"n": 480, "per_s": 3600}], "counts_ops": "sub_unsub_login"}, "sub": {"ack": "per_topic"},
       "liveness": {"server_ping": "none", "client_ping": "ping", "client_ping_s": 20, "idle_close_s": 30}}
DERIBIT = {"client_msg": {"credits": {"cost": 3000, "pool": 30000, "refill_per_s": 10000}},
           "liveness": {"server_ping": "app", "server_ping_s": 30}}
NAMED = ("LIVE", "STALE", "REJECTED", "GAP", "DOWN", "PENDING", "SUBSCRIBING", "ACKED", "SYNCING")
MS = 1_000_000


def plan_of(count, profile, channel="trade", snapshot="", first_data_s=5.0, first=0):
    streams = [StreamPlan(id=i, instrument=i, endpoint="e", wire=f"s{i}@{channel}", symbol=f"s{i}", channel=channel,
                          snapshot=snapshot, first_data_s=first_data_s) for i in range(first, first + count)]
    return ConnectionPlan(id=1, venue="toy", endpoint="e", url="ws://toy", streams=streams, profile=profile)


class ToyVenue:
    """A venue of JSON messages {"id", "verb", "wires"}: at most 50 wires a message."""

    def __init__(self, resync="resubscribe", ping_text=None):
        self.resync, self.ping_text = resync, ping_text

    def url(self, endpoint, base, streams):
        return base

    def on_open(self, endpoint):
        return []

    def ping(self, endpoint, request_id):
        return self.ping_text

    def subscribe(self, endpoint, streams, request_id):
        return self._messages("sub", streams, request_id)

    def unsubscribe(self, endpoint, streams, request_id):
        return self._messages("unsub", streams, request_id)

    def _messages(self, verb, streams, request_id):
        parts = [streams[i:i + 50] for i in range(0, len(streams), 50)]
        return [(request_id + n, json.dumps({"id": request_id + n, "verb": verb, "wires": [s.wire for s in part]}), part)
                for n, part in enumerate(parts)]


class World:
    """The other side and the clock: carries out actions, delivers answers after a network delay, counts what it is sent.

    behave(wire) → "ok", "silent" (acknowledged, no data), "refuse", "mute" (no answer), "early" (data before the answer)."""

    def __init__(self, profile, streams, behave=lambda wire: "ok", seed=1, resync="resubscribe", ping_text=None,
                 limit=None, per_topic=False, rest_ok=lambda: True, permits=True):
        self.now = 0
        self.rng = random.Random(seed)
        self.connection = machine.Connection(streams, ToyVenue(resync, ping_text), random.Random(seed), 0)
        self.behave, self.limit, self.per_topic, self.rest_ok, self.permits = behave, limit, per_topic, rest_ok, permits
        self.events = []
        self.order = itertools.count()
        self.life = 0                 # of the present socket; answers to a former one are lost with it
        self.frames = self.heard = 0
        self.counted = []             # arrival times of client messages on this socket
        self.subscribed = set()
        self.sent, self.texts, self.pongs, self.punished, self.connects = [], [], [], [], []
        self.rest_asked = 0
        self.quiet = False
        self.withheld = ""            # kind of permit that is not granted
        self.arrival = 0
        self.actions = []
        self.connection.start(0)
        self.settle()

    def later(self, delay_ms, what, *arguments, any_life=False):
        at = self.now + int(delay_ms * MS)
        heapq.heappush(self.events, (at, next(self.order), None if any_life else self.life, what, arguments))

    def settle(self):
        for action in self.connection.take():
            self.actions.append(action)
            getattr(self, "do_" + type(action).__name__.lower(), lambda action: None)(action)

    def run(self, seconds):
        end = self.now + int(seconds * SECOND)
        while True:
            due = self.connection.next_deadline()
            event = self.events[0][0] if self.events else None
            at = min((t for t in (due, event) if t is not None), default=None)
            if at is None or at > end:
                self.now = end
                return self
            assert due is None or due >= self.now - SECOND, "a deadline that is past and never served"
            self.now = max(self.now, at)
            if event is not None and event <= self.now:
                _, _, life, what, arguments = heapq.heappop(self.events)
                if life is None or life == self.life:
                    what(*arguments)
            else:
                self.connection.tick(self.now, self.frames, self.heard)
            self.settle()

    # what the connection asks for

    def do_wantpermit(self, action):
        answer = self.connection.operation_permit if action.kind == "operation" else self.connection.permit
        if self.permits and action.kind != self.withheld:
            self.later(1, lambda: answer(self.now), any_life=True)

    def do_connect(self, action):
        self.life += 1
        self.connects.append(self.now)
        self.frames, self.heard, self.counted, self.subscribed = 0, 0, [], set()
        self.later(20, lambda: self.connection.opened(self.now))

    def do_close(self, action):
        self.later(10, self.cut, action.code, action.reason)

    def do_abort(self, action):
        self.life += 1

    def do_sendpong(self, action):
        self.pongs.append((self.now, action.payload))
        self.count(CONTROL)

    def do_sendping(self, action):
        self.count(CONTROL)

    def do_send(self, action):
        self.sent.append((self.now, action.text))
        self.count(TEXT)
        if action.text.startswith("{"):
            self.arrival = max(self.arrival + 1, self.now + int(self.rng.uniform(5, 50) * MS))     # TCP keeps the order
            self.later((self.arrival - self.now) / MS, self.answer, json.loads(action.text))

    def do_wantsnapshot(self, action):
        self.rest_asked += 1
        self.later(self.rng.uniform(20, 200), self.rest, action.stream, any_life=True)

    def do_punish(self, action):
        self.punished.append(action)

    # the venue

    def count(self, kind):
        """The venue's strict rolling window, on arrival times that wander by up to 80 ms."""
        if not self.limit:
            return
        self.counted.append(self.now + int(self.rng.uniform(0, 80) * MS))
        recent = sorted(self.counted)[-(self.limit[0] + 1):]
        if len(recent) > self.limit[0] and recent[-1] - recent[0] < self.limit[1] * SECOND:
            raise AssertionError(f"{len(recent)} messages within {(recent[-1] - recent[0]) / SECOND:.3f} s")

    def answer(self, message):
        kinds = {wire: self.behave(wire) for wire in message["wires"]}
        if message["verb"] == "unsub":
            self.subscribed -= set(message["wires"])
            self.say(Ack(message["id"]))
            return
        good = [wire for wire, kind in kinds.items() if kind not in ("refuse",)]
        for wire in good if self.per_topic or len(good) == len(kinds) else ():
            if kinds[wire] == "early":
                self.data(wire)
        if "mute" not in kinds.values():
            if self.per_topic:
                for wire, kind in kinds.items():
                    self.say(Ack(0, wire, kind != "refuse", "" if kind != "refuse" else "no such channel"))
            elif len(good) < len(kinds):
                self.say(Ack(message["id"], "", False, "bad symbol"))
                return
            else:
                self.say(Ack(message["id"]))
        self.subscribed |= set(good)
        for wire in good:
            if kinds[wire] == "ok":
                self.later(self.rng.uniform(1, 100), self.data, wire)

    def say(self, *events):
        self.frame()
        self.connection.control(self.now, list(events))

    def frame(self):
        if not self.quiet:
            self.frames += 1
            self.heard = self.now

    def data(self, wire):
        self.frame()
        stream = self.connection.by_wire.get(wire)
        if stream is None:
            return
        self.connection.first_data(self.now, stream)
        if stream.plan.channel == "book" and stream.plan.snapshot != "rest":
            self.connection.live(self.now, stream)

    def rest(self, stream):
        ok = self.rest_ok()
        self.connection.snapshot(self.now, stream, ok, "" if ok else "HTTP 503")
        if ok and stream.wanted:
            self.connection.live(self.now, stream)

    def cut(self, code=1006, reason=""):
        self.life += 1
        self.connection.closed(self.now, code, reason)
        self.settle()

    def feed_pings(self, every_s, count, payload=b"t"):
        for n in range(count):
            self.later(every_s * 1000 * n, lambda n=n: (self.frame(), self.connection.ping(self.now, payload + str(n).encode())))

    def states(self):
        return {stream.id: stream.state for stream in self.connection.wanted()}

    def operations(self, verb):
        return [json.loads(text) for _, text in self.sent if f'"{verb}"' in text]


# -- subscribing and its budgets ------------------------------------------------------------------------------

def test_five_hundred_streams_become_live_within_the_strict_window_while_the_venue_pings():
    world = World(BINANCE, plan_of(500, BINANCE), limit=(5, 1)).run(0.03)
    world.feed_pings(0.4, 50)
    world.run(20)
    assert set(world.states().values()) == {"LIVE"}
    assert world.pongs and len(world.operations("sub")) == 10


def test_a_ping_flood_is_answered_with_the_newest_payload_and_never_breaks_the_window():
    world = World(BINANCE, plan_of(1, BINANCE), limit=(5, 1)).run(5)
    world.feed_pings(0.01, 300)
    world.run(5)
    assert world.pongs[-1][1] == b"t299"
    assert len(world.pongs) <= 4 * 4


def test_a_pong_goes_out_at_once_in_the_middle_of_a_paced_burst():
    world = World(BINANCE, plan_of(1000, BINANCE), limit=(5, 1)).run(2)
    asked = world.now
    world.connection.ping(world.now, b"payload")
    world.settle()
    assert world.pongs == [(asked, b"payload")]


def test_a_window_over_an_hour_is_kept_to_eighty_percent_and_only_counts_operations():
    pacer = Pacer(OKX["client_msg"])
    now = 0
    for _ in range(384):
        assert pacer.ready_ns(now, OPERATION) == now
        pacer.spend(now, OPERATION)
        assert pacer.ready_ns(now, TEXT) == now and pacer.ready_ns(now, CONTROL) == now
    assert pacer.ready_ns(now, OPERATION) >= 3600 * SECOND


def test_credits_allow_a_burst_and_then_the_refill_rate():
    pacer = Pacer(DERIBIT["client_msg"])
    now, times = 0, []
    for _ in range(30):
        now = pacer.ready_ns(now, OPERATION)
        pacer.spend(now, OPERATION)
        times.append(now)
    assert times[7] == 0 and times[8] > 0
    assert (times[-1] - times[8]) / SECOND == pytest.approx(21 * 3000 / 8000, rel=0.01)


def test_data_before_the_acknowledgement_counts():
    world = World(BINANCE, plan_of(3, BINANCE), behave=lambda wire: "early").run(1)
    assert set(world.states().values()) == {"LIVE"}


def test_a_lost_acknowledgement_does_not_matter_when_data_flows():
    world = World(OKX, plan_of(3, OKX), behave=lambda wire: "mute").run(1)
    for wire in list(world.connection.by_wire):
        world.data(wire)
    world.run(20)
    assert set(world.states().values()) == {"LIVE"} and len(world.operations("sub")) == 1


def test_a_stream_without_any_answer_is_asked_again_once_and_then_rejected():
    world = World(OKX, plan_of(1, OKX), behave=lambda wire: "mute").run(9.9)
    assert world.states() == {0: "SUBSCRIBING"}
    world.run(0.3)
    assert world.states() == {0: "REJECTED"} and "no answer" in world.connection.streams[0].reason
    assert len(world.operations("sub")) == 2


def test_an_acknowledged_but_silent_stream_is_found_asked_again_and_named():
    world = World(BINANCE, plan_of(2, BINANCE), behave=lambda wire: "silent" if wire.startswith("s1@") else "ok").run(12)
    assert world.states() == {0: "LIVE", 1: "REJECTED"}
    assert "no data within 5 s" in world.connection.streams[1].reason
    assert world.connection.counts["first_data_missed"] == 2
    world.data("s1@trade")
    assert world.states()[1] == "LIVE", "late data is data"


def test_silence_is_normal_where_the_plan_says_so():
    world = World(BINANCE, plan_of(1, BINANCE, first_data_s=0.0), behave=lambda wire: "silent").run(29)
    assert world.states() == {0: "ACKED"}


def test_one_bad_symbol_in_a_refused_batch_costs_only_itself():
    world = World(BINANCE, plan_of(40, BINANCE), behave=lambda wire: "refuse" if wire.startswith("s17@") else "ok", limit=(5, 1))
    world.run(20)
    states = world.states()
    assert states.pop(17) == "REJECTED" and set(states.values()) == {"LIVE"}
    assert world.connection.streams[17].reason == "bad symbol"
    assert len(world.operations("sub")) <= 13      # 1 + 2·log2(40)


def test_answers_by_topic_name_the_refused_one():
    world = World(OKX, plan_of(4, OKX), behave=lambda wire: "refuse" if wire.startswith("s2@") else "ok", per_topic=True).run(2)
    assert world.states() == {0: "LIVE", 1: "LIVE", 2: "REJECTED", 3: "LIVE"}


@pytest.mark.parametrize("wires, states", [(None, "ACKED ACKED"), (("s0@trade",), "ACKED REJECTED"), ((), "REJECTED REJECTED")])
def test_a_list_of_accepted_wires_means_exactly_these(wires, states):
    connection = machine.Connection(plan_of(2, DERIBIT), ToyVenue(), random.Random(1), 0)
    connection.start(0), connection.permit(0), connection.opened(0)
    connection.control(0, [Ack(1, wires=wires)])
    assert [stream.state for stream in connection.wanted()] == states.split()


def test_an_error_after_the_acknowledgement_ends_that_stream_only():
    world = World(OKX, plan_of(3, OKX)).run(2)
    world.say(Complaint("channel-conn-count-error", "too many channels", "s1@trade"))
    assert world.states() == {0: "LIVE", 1: "REJECTED", 2: "LIVE"}


def test_a_complaint_about_limits_stops_operations_for_a_while_and_is_reported():
    world = World(DERIBIT, plan_of(200, DERIBIT)).run(0.05)
    world.say(Complaint("10028", "too_many_requests"))
    before, at = len(world.sent), world.now
    world.connection.replan(world.now, plan_of(300, DERIBIT))
    world.run(9)
    assert len(world.sent) == before
    world.run(10)
    assert len(world.sent) > before and world.sent[before][0] >= at + machine.LIMIT_BLOCK_NS
    assert world.punished[0].code == 10028


def test_the_same_wire_twice_is_subscribed_once_and_the_second_is_told_who_has_it():
    plan = plan_of(2, BINANCE)
    plan.streams[1].wire = plan.streams[0].wire
    world = World(BINANCE, plan).run(1)
    assert world.states() == {0: "LIVE", 1: "REJECTED"} and "already stream 0" in world.connection.streams[1].reason


def test_a_reply_the_venue_asked_for_goes_out():
    world = World(DERIBIT, plan_of(1, DERIBIT)).run(1)
    world.say(Reply("alive"))
    world.settle()
    assert world.sent[-1][1] == "alive"


def test_a_stream_the_venue_has_no_words_for_is_rejected_alone():
    class Choosy(ToyVenue):
        def subscribe(self, endpoint, streams, request_id):
            if any(stream.symbol == "s3" for stream in streams):
                raise VenueError("toy: s3 has no such channel; ask for another")
            return super().subscribe(endpoint, streams, request_id)
    connection = machine.Connection(plan_of(10, BINANCE), Choosy(), random.Random(1), 0)
    connection.start(0), connection.permit(0), connection.opened(0)
    for second in range(1, 10):
        connection.tick(second * SECOND, second, second * SECOND)
    asked = [wire for action in connection.take() if isinstance(action, machine.Send) for wire in json.loads(action.text)["wires"]]
    assert set(asked) == {f"s{i}@trade" for i in range(10) if i != 3}
    assert connection.streams[3].state == "REJECTED" and "ask for another" in connection.streams[3].reason


# -- changes of the plan --------------------------------------------------------------------------------------

def test_a_new_plan_touches_only_what_changed():
    world = World(BINANCE, plan_of(10, BINANCE)).run(2)
    world.connection.replan(world.now, plan_of(10, BINANCE, first=5))
    world.settle()
    world.run(3)
    assert world.states() == {i: "LIVE" for i in range(5, 15)}
    assert [message["wires"] for message in world.operations("unsub")] == [[f"s{i}@trade" for i in range(5)]]
    assert world.operations("sub")[-1]["wires"] == [f"s{i}@trade" for i in range(10, 15)]
    removed = [action.stream.id for action in world.actions if isinstance(action, machine.RemoveStream)]
    assert sorted(removed) == [0, 1, 2, 3, 4] and world.subscribed == {f"s{i}@trade" for i in range(5, 15)}


def test_a_stream_that_comes_back_before_its_end_was_answered_is_subscribed_when_it_is():
    """What still comes of the subscription that ends must not be taken for the one that follows."""
    world = World(DERIBIT, plan_of(3, DERIBIT)).run(2)
    count = len(world.actions)
    world.connection.replan(world.now, plan_of(2, DERIBIT))
    plan = plan_of(3, DERIBIT)
    plan.streams[2].id = 99          # as another line, or as a standby's
    world.connection.replan(world.now, plan)
    assert not [action for action in world.connection.actions if isinstance(action, machine.AddStream)]
    world.settle()
    world.run(3)
    order = [(type(action).__name__, action.stream.id) for action in world.actions[count:]
             if isinstance(action, (machine.AddStream, machine.RemoveStream)) and action.stream.plan.wire == plan.streams[2].wire]
    assert order == [("RemoveStream", 2), ("AddStream", 99)] and world.states()[99] == "LIVE"
    sent = [(verb, wire) for verb in ("unsub", "sub") for message in world.operations(verb)[-1:] for wire in message["wires"]]
    assert sent == [("unsub", plan.streams[2].wire), ("sub", plan.streams[2].wire)]
    world.connection.replan(world.now, plan_of(2, DERIBIT))      # away, back, and away for good
    world.connection.replan(world.now, plan)
    world.connection.replan(world.now, plan_of(2, DERIBIT))
    world.settle()
    world.run(3)
    assert world.subscribed == {stream.wire for stream in plan.streams[:2]}


def test_a_standby_that_comes_or_goes_is_told_to_the_publisher_and_touches_nothing_else():
    world = World(BINANCE, plan_of(3, BINANCE)).run(2)
    for backed in (True, False):
        sent = len(world.operations("sub")) + len(world.operations("unsub"))
        plan = plan_of(3, BINANCE)
        plan.streams[1].backed = backed
        world.connection.replan(world.now, plan)
        world.settle()
        world.run(1)
        told = [action.stream.id for action in world.actions if isinstance(action, machine.BackStream)]
        assert told == ([1] if backed else [1, 1])
        assert len(world.operations("sub")) + len(world.operations("unsub")) == sent


def test_an_empty_plan_closes_the_connection_and_streams_open_it_again():
    world = World(BINANCE, plan_of(2, BINANCE)).run(2)
    world.connection.replan(world.now, plan_of(0, BINANCE))
    world.settle()
    world.run(3)
    assert world.connection.state == "IDLE" and not world.connection.streams and len(world.connects) == 1
    world.connection.replan(world.now, plan_of(2, BINANCE))
    world.settle()
    world.run(3)
    assert set(world.states().values()) == {"LIVE"}


def test_a_wire_that_leaves_and_comes_back_is_unsubscribed_before_it_is_subscribed():
    world = World(BINANCE, plan_of(2, BINANCE)).run(2)
    world.connection.replan(world.now, plan_of(1, BINANCE))
    world.connection.replan(world.now, plan_of(2, BINANCE))
    world.settle()
    world.run(3)
    assert world.states() == {0: "LIVE", 1: "LIVE"} and "s1@trade" in world.subscribed


def test_late_data_of_a_former_subscription_is_not_taken_for_the_new_one():
    world = World(BINANCE, plan_of(3, BINANCE, "book", "in_band")).run(1)
    world.connection.gap(world.now, world.connection.by_wire["s0@book"], "gap")
    world.settle()
    world.connection.replan(world.now, plan_of(0, BINANCE, "book"))
    world.connection.replan(world.now, plan_of(5, BINANCE, "book", "in_band"))
    world.settle()
    world.run(5)
    assert set(world.states().values()) == {"LIVE"} and world.subscribed == {f"s{i}@book" for i in range(5)}


# -- books ----------------------------------------------------------------------------------------------------

def test_a_thousand_gaps_cause_exactly_one_resubscribe():
    world = World(OKX, plan_of(1, OKX, "book", "in_band")).run(1)
    stream = world.connection.streams[0]
    world.connection.pacer.block(world.now + SECOND)      # the unsubscribe has to wait while gap follows gap
    for n in range(1000):
        world.connection.gap(world.now, stream, "expected 5, got 7")
    world.settle()
    world.run(5)
    assert world.connection.counts["resyncs"] == 1
    assert stream.state == "LIVE" and stream.gaps == 1000
    assert len(world.operations("unsub")) == 1 and len(world.operations("sub")) == 2


def test_a_book_that_breaks_at_once_again_and_again_is_resubscribed_ever_more_slowly():
    world = World(OKX, plan_of(1, OKX, "book", "in_band"))
    stream = world.connection.streams[0]
    never = world.connection.live
    world.connection.live = lambda now, stream: world.connection.gap(now, stream, "checksum")
    world.run(3600)
    world.connection.live = never
    assert 60 < len(world.operations("sub")) < 300 and stream.state != "LIVE"


def test_a_rest_book_holds_back_asks_once_at_a_time_and_retries_when_ahead_or_refused():
    answers = iter([False, False, True] + [True] * 100)
    world = World(BINANCE, plan_of(1, BINANCE, "book", "rest"), resync="rest", rest_ok=lambda: next(answers)).run(10)
    assert world.states() == {0: "LIVE"} and world.rest_asked == 3
    kinds = [type(action).__name__ for action in world.actions if isinstance(action, (machine.HoldBack, machine.WantSnapshot))]
    assert kinds == ["HoldBack", "WantSnapshot"] * 3
    stream = world.connection.streams[0]
    for _ in range(50):
        world.connection.gap(world.now, stream, "gap")
    assert stream.state == "GAP"
    world.settle()
    world.run(2)
    assert world.rest_asked == 4 and stream.state == "LIVE" and len(world.operations("sub")) == 1
    world.connection.ahead(world.now, stream)
    world.connection.ahead(world.now, stream)
    world.run(2)
    assert world.rest_asked == 5


def test_a_snapshot_asked_of_a_dead_supervisor_is_asked_of_the_next():
    world = World(BINANCE, plan_of(1, BINANCE, "book", "rest"), resync="rest")
    world.rest = lambda stream: None
    world.run(30)
    assert world.rest_asked == 1
    del world.rest
    world.connection.supervisor_back(world.now)
    world.settle()
    world.run(1)
    assert world.states() == {0: "LIVE"}


# -- life of the connection -----------------------------------------------------------------------------------

def test_no_connection_without_a_permit():
    world = World(BINANCE, plan_of(1, BINANCE), permits=False).run(100)
    assert world.connection.state == "WAIT_PERMIT" and not world.connects
    world.connection.permit(world.now)
    world.settle()
    world.run(2)
    assert world.states() == {0: "LIVE"}


def test_a_plan_emptied_while_waiting_for_a_permit_asks_for_nothing_more():
    world = World(BINANCE, plan_of(1, BINANCE), permits=False).run(1)
    world.connection.replan(world.now, plan_of(0, BINANCE))
    assert world.connection.state == "IDLE" and not world.connection.wants_permit()
    world.connection.permit(world.now)
    world.settle()
    assert not world.connects


def test_the_first_retry_comes_within_50_ms_and_later_ones_back_off_with_full_jitter():
    backoff = Backoff(random.Random(3))
    delays = [backoff.delay_ns() for _ in range(2000)]
    assert delays[0] <= 50 * MS and max(delays) <= 30 * SECOND
    assert min(delays[100:]) < 1 * SECOND and sum(delays[100:]) / 1900 == pytest.approx(15 * SECOND, rel=0.05)
    assert backoff.delay_ns(retry_s=600) >= 600 * SECOND


def test_only_healthy_data_resets_the_backoff():
    world = World(BINANCE, plan_of(1, BINANCE))
    for _ in range(6):
        world.run(20)
        if world.connection.state == "UP":
            world.cut()
    assert world.connection.backoff.attempts >= 5
    for n in range(12):
        world.later(10000 * n, world.frame, any_life=True)
    world.run(100)
    assert world.connection.backoff.attempts == 0 and world.connection.state == "UP"


def test_a_connection_of_refused_streams_does_not_reset_the_backoff():
    world = World(BINANCE, plan_of(1, BINANCE), behave=lambda wire: "refuse")
    for _ in range(6):
        world.run(40)
        if world.connection.state == "UP":
            world.cut()
    world.run(100)
    assert world.connection.backoff.attempts >= 5


def test_an_operation_that_the_address_shares_needs_a_permit_each():
    shared = {**DERIBIT, "client_msg": {**DERIBIT["client_msg"], "credits": {**DERIBIT["client_msg"]["credits"], "scope": "ip"}}}
    world = World(shared, plan_of(150, shared))
    world.withheld = "operation"
    world.run(10)
    assert not world.sent and world.connection.wants_permit("operation")
    world.withheld = ""
    world.connection.operation_permit(world.now)
    world.settle()
    world.run(10)
    operations = [action for action in world.actions if isinstance(action, machine.WantPermit) and action.kind == "operation"]
    assert len(operations) == len(world.sent) > 1


def test_a_close_for_breaking_a_limit_waits_for_the_penalty_and_is_reported():
    world = World(BINANCE, plan_of(1, BINANCE)).run(2)
    world.cut(1008, "Too many requests")
    at = world.now
    world.run(20)
    assert world.punished[0].code == 1008 and world.connects[-1] - at >= 5 * SECOND


def test_a_lost_connection_names_the_streams_with_data_and_all_come_back():
    world = World(BINANCE, plan_of(20, BINANCE)).run(2)
    world.cut(1001, "going away")
    lost = [action for action in world.actions if isinstance(action, machine.SessionLost)]
    assert len(lost[0].streams) == 20 and set(world.states().values()) == {"DOWN"}
    world.run(5)
    assert set(world.states().values()) == {"LIVE"} and world.connection.reconnects == 1


def test_a_connection_that_hangs_while_connecting_is_dropped_and_tried_again():
    world = World(BINANCE, plan_of(1, BINANCE))
    world.do_connect = lambda action: world.connects.append(world.now)
    world.run(100)
    assert 4 <= len(world.connects) <= 6


def test_silence_makes_streams_stale_and_then_ends_the_connection():
    world = World(BINANCE, plan_of(1, BINANCE)).run(2)
    world.run(31.5)
    assert world.states() == {0: "STALE"}
    assert [action.code for action in world.actions if isinstance(action, machine.Status)] == ["STALE"]
    world.run(30)
    assert world.connection.reconnects == 1
    assert [action.code for action in world.actions if isinstance(action, machine.Close)] == [1001]


def test_a_frame_makes_stale_streams_live_again():
    world = World(BINANCE, plan_of(1, BINANCE)).run(34)
    assert world.states() == {0: "STALE"}
    world.frame()
    world.run(0.2)
    assert world.states() == {0: "LIVE"} and world.connection.reconnects == 0


def test_a_busy_connection_is_stale_after_one_second_and_a_quiet_one_is_not():
    world = World(BINANCE, plan_of(1, BINANCE)).run(1)
    for n in range(30 * 20):
        world.later(50 * n, world.frame)
    world.run(30)
    assert world.states() == {0: "LIVE"}
    world.run(1.1)
    assert world.states() == {0: "STALE"}


def late(world, late_ns=300 * MS):
    world.connection.throttled(world.now, "the venue holds back", late_ns)
    world.settle()


def told(world):
    return [(action.code, action.late_ns) for action in world.actions if isinstance(action, machine.Status)]


def test_a_throttled_connection_is_stale_although_frames_come_and_live_when_it_recovers():
    world = World(BINANCE, plan_of(2, BINANCE)).run(2)
    late(world)
    assert world.states() == {0: "STALE", 1: "STALE"} and {stream.reason for stream in world.connection.wanted()} == {"the venue holds back"}
    world.frame()
    world.run(1)
    assert world.states() == {0: "STALE", 1: "STALE"}, "late frames make nothing fresh"
    world.connection.recovered(world.now)
    world.settle()
    assert world.states() == {0: "LIVE", 1: "LIVE"} and told(world) == [("STALE", 300 * MS)] * 2 + [("LIVE", 0)] * 2


def test_a_stream_that_comes_to_life_on_a_throttled_connection_is_stale_too():
    world = World(BINANCE, plan_of(1, BINANCE)).run(2)
    late(world)
    world.connection.replan(world.now, plan_of(2, BINANCE))
    world.run(2)
    assert world.states() == {0: "STALE", 1: "STALE"}


def test_silence_on_a_throttled_connection_ends_it_and_the_next_one_is_not_throttled():
    world = World(BINANCE, plan_of(1, BINANCE)).run(2)
    late(world)
    world.run(33)
    world.frame()
    world.run(0.2)
    assert world.states() == {0: "STALE"}, "heard again, but what came is late"
    world.quiet = True
    world.cut()
    world.quiet = False
    world.run(10)
    assert world.states() == {0: "LIVE"}


def test_client_pings_keep_a_quiet_connection_open():
    world = World(OKX, plan_of(1, OKX), ping_text="ping")
    world.do_send, plain = (lambda action: (plain(action), world.frame())), world.do_send
    world.run(600)
    assert sum(text == "ping" for _, text in world.sent) == 29 or sum(text == "ping" for _, text in world.sent) == 30
    assert world.connection.reconnects == 0 and world.states() == {0: "LIVE"}


def test_the_daily_cut_is_met_early_with_a_permit_in_hand():
    profile = dict(BINANCE, lifetime={"max_s": 600})
    world = World(profile, plan_of(2, profile))
    world.feed_pings(15, 200)
    for n in range(200):
        world.later(15000 * n, world.frame, any_life=True)
    world.run(599)
    assert len(world.connects) == 2 and 540 * SECOND <= world.connects[1] < 600 * SECOND
    assert [action.code for action in world.actions if isinstance(action, machine.Close)] == [1000]
    assert sum(isinstance(action, machine.WantPermit) for action in world.actions) == 2, "one for each connection"
    world.run(2)
    assert set(world.states().values()) == {"LIVE"}


def test_a_notice_of_maintenance_moves_the_connection_within_seconds():
    world = World(BINANCE, plan_of(2, BINANCE)).run(2)
    world.say(Closing("serverShutdown"))
    world.settle()
    assert [action for action in world.actions if isinstance(action, machine.Announced)] == [machine.Announced("serverShutdown", 10.0)]
    world.run(4)
    world.connection.supervisor_back(world.now)
    world.settle()
    told = [action for action in world.actions if isinstance(action, machine.Announced)][1:]
    assert [action.reason for action in told] == ["serverShutdown"] and told[0].lead_s == pytest.approx(6.0, abs=0.2), "a new supervisor hears it too"
    world.run(0.9)
    assert len(world.connects) == 1, "the supervisor has half of the time to open another connection"
    world.run(5.1)
    assert len(world.connects) == 2 and set(world.states().values()) == {"LIVE"}
    count = len([action for action in world.actions if isinstance(action, machine.Announced)])
    world.connection.supervisor_back(world.now)
    world.settle()
    assert len([action for action in world.actions if isinstance(action, machine.Announced)]) == count, "that was of the one before"


def test_told_to_rotate_it_closes_and_comes_back_with_one_permit():
    world = World(BINANCE, plan_of(2, BINANCE)).run(2)
    world.connection.rotate(world.now, "no room for another connection")
    world.settle()
    world.run(3)
    assert len(world.connects) == 2 and set(world.states().values()) == {"LIVE"}
    assert [(action.code, action.reason) for action in world.actions if isinstance(action, machine.Close)] == [(1000, "no room for another connection")]


# -- in private -----------------------------------------------------------------------------------------------

def private_plan(role, channel, snapshot=""):
    plan = plan_of(1, BINANCE, channel, snapshot)
    plan.streams[0].role = role
    return plan


def test_a_stream_held_in_private_is_held_and_lives_once_it_is_taken_over():
    world = World(BINANCE, private_plan("incoming", "trade")).run(2)
    assert world.states() == {0: "HELD"} and world.connection.live_count() == 1
    stream, = world.connection.wanted()
    world.connection.taken_over(world.now, stream, "NONE")
    assert world.states() == {0: "LIVE"} and stream.plan.role == ""
    world.connection.let_go(world.now, stream)
    assert world.states() == {0: "HELD"}


@pytest.mark.parametrize("role,asked,state", [("incoming", 0, "HELD"), ("standby", 1, "HELD"), ("", 1, "LIVE")])
def test_an_incoming_book_asks_for_no_snapshot_as_it_comes_with_the_hand_over(role, asked, state):
    world = World(BINANCE, private_plan(role, "book", "rest")).run(3)
    assert (world.rest_asked, world.states()) == (asked, {0: state})


def test_a_book_that_could_not_be_continued_is_a_gap_and_resyncs():
    world = World(BINANCE, private_plan("incoming", "book", "rest")).run(3)
    stream, = world.connection.wanted()
    world.connection.taken_over(world.now, stream, "GAP")
    assert world.states() == {0: "GAP"} and stream.gaps == 1
    world.settle()
    world.run(3)
    assert world.rest_asked == 1 and world.states() == {0: "LIVE"}


def test_a_stream_under_another_id_is_the_same_subscription():
    world = World(BINANCE, plan_of(2, BINANCE)).run(2)
    sent = len(world.sent)
    plan = plan_of(2, BINANCE)
    plan.streams[0].id = 77
    world.connection.replan(world.now, plan)
    world.settle()
    world.run(5)
    assert world.states() == {77: "LIVE", 1: "LIVE"} and len(world.sent) == sent


def test_stop_closes_with_1000_and_stays_closed():
    world = World(BINANCE, plan_of(2, BINANCE)).run(2)
    world.connection.stop(world.now)
    world.settle()
    world.run(60)
    assert world.connection.state == "CLOSED" and len(world.connects) == 1


def test_spare_permits_serve_until_they_expire():
    pool = PermitPool()
    pool.add(2, 100)
    pool.add(1, 200)
    assert [pool.take(50), pool.take(150), pool.take(150), pool.take(250)] == [True, True, False, False]


# -- anything may happen --------------------------------------------------------------------------------------

class AnythingMayHappen(RuleBasedStateMachine):
    """Plans, cuts, floods, gaps and refusals in any order: no window is ever broken, nothing grows without bound,
    and once the venue behaves every stream ends LIVE or in a named state within its deadlines."""

    @initialize(seed=st.integers(0, 1 << 30), profile=st.sampled_from([BINANCE, OKX, DERIBIT]), rest=st.booleans())
    def begin(self, seed, profile, rest):
        self.profile, self.rest = profile, rest
        self.kinds = ("book", "rest" if rest else "in_band")
        self.bad = {}
        limit = {id(BINANCE): (5, 1), id(OKX): None, id(DERIBIT): None}[id(profile)]
        self.world = World(profile, plan_of(3, profile, *self.kinds), lambda wire: self.bad.get(wire, "ok"), seed,
                           "rest" if rest else "resubscribe", limit=limit, ping_text="ping" if profile is OKX else None,
                           per_topic=profile is OKX)

    @rule(first=st.integers(0, 40), count=st.integers(0, 200))
    def replan(self, first, count):
        self.world.connection.replan(self.world.now, plan_of(count, self.profile, *self.kinds, first=first))
        self.world.settle()

    @rule(seconds=st.sampled_from([0.01, 0.2, 1, 7, 40]))
    def wait(self, seconds):
        self.world.later(seconds * 500, self.world.frame, any_life=True)
        self.world.run(seconds)

    @rule(symbol=st.integers(0, 60), kind=st.sampled_from(["ok", "silent", "refuse", "mute", "early"]))
    def behave(self, symbol, kind):
        self.bad[f"s{symbol}@book"] = kind

    @rule(code=st.sampled_from([1000, 1001, 1006, 1008, 4004]))
    @precondition(lambda self: self.world.connection.state in ("UP", "CLOSING", "CONNECTING"))
    def cut(self, code):
        self.world.cut(code, "cut")

    @rule(count=st.integers(1, 100))
    def pings(self, count):
        self.world.feed_pings(0.02, count)

    @rule(count=st.integers(1, 30), symbol=st.integers(0, 60))
    def gaps(self, count, symbol):
        stream = self.world.connection.by_wire.get(f"s{symbol}@book")
        for _ in range(count if stream else 0):
            self.world.connection.gap(self.world.now, stream, "gap")
        self.world.settle()

    @rule(kind=st.sampled_from([Closing("soon"), Complaint("10028", "too_many_requests"), Ack(0), Ack(99999, "", False, "?"),
                                Ack(0, "s1@book", False, "gone"), Complaint("x", "y", "s2@book")]))
    def say(self, kind):
        self.world.say(kind)
        self.world.settle()

    @invariant()
    def nothing_grows(self):
        if hasattr(self, "world"):
            connection = self.world.connection
            assert len(connection.outbox) <= 8 and len(connection.requests) <= machine.REQUEST_MAX
            assert len(connection.replies) <= machine.REPLY_MAX and len(connection.streams) <= 1000
            assert len(connection.heap) <= 5000 and len(connection.groups) <= 1000
            assert all(stream.state in NAMED for stream in connection.streams.values())

    def teardown(self):
        if not hasattr(self, "world"):
            return
        self.bad.clear()
        self.replan(0, 60)
        for _ in range(30):
            self.world.later(4900, self.world.frame, any_life=True)
            self.world.run(10)
        states = self.world.states()
        assert len(states) == 60
        assert set(states.values()) <= {"LIVE", "REJECTED"}, states
        reasons = {stream.reason for stream in self.world.connection.wanted() if stream.state == "REJECTED"}
        assert all(reasons) and sum(state == "LIVE" for state in states.values()) >= 30
        assert self.world.subscribed >= {f"s{i}@book" for i, state in states.items() if state == "LIVE"}


AnythingMayHappen.TestCase.settings = settings(max_examples=250, stateful_step_count=25, deadline=None,
                                               suppress_health_check=list(HealthCheck))
TestAnythingMayHappen = AnythingMayHappen.TestCase
