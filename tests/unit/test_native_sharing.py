"""Which sessions share a link: those of near nodes do, and a link that serves nobody well goes."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from twisted.internet.defer import CancelledError, Deferred

from nodepass.address import Endpoint
from nodepass.relay.stream import Cause, Stream
from nodepass.wire import Opening
from nodepass.wire.native.leaving import LEAVING_TIMEOUT
from nodepass.wire.native.muxframes import FRAME_SIZE, WINDOW, window
from nodepass.wire.native.muxstream import CREDIT
from nodepass.wire.native.sharing import MOST_RESTS
from nodepass.wire.parting import PARTING_TIMEOUT
from tests.muxrig import FAR, LOCAL, MUCH, NEAR, WITHIN, End, Handle, Rig, Side, know_distances

ENDS = pytest.mark.parametrize("taking", [True, False], ids=["the taker", "the server"])


@pytest.fixture(autouse=True)
def distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes know how far they are from each other."""
    know_distances(monkeypatch)


def shared(rig: Rig) -> list[int]:
    """The links that are shared, as the taking end sees it."""
    return [mux.number for mux in rig.taking.pool._sharing._links]


# Near and far.


@pytest.mark.parametrize("distance", [0.0, NEAR, WITHIN])
def test_near_nodes_share(distance: float) -> None:
    """Any number of sessions on one link; the idle ones stay idle."""
    rig = Rig(4, distance=distance).start()
    pairs = [rig.open() for _ in range(50)]
    assert not any(end.moved for pair in pairs for end in pair)
    assert len(shared(rig)) == 1
    assert rig.taking.pool.sessions == rig.serving.pool.sessions == 50
    assert rig.taking.pool.idle == rig.serving.pool.idle == 3
    for near, _ in pairs:
        near.stream.abort(Cause.IDLE)
    rig.nothing_left()


@pytest.mark.parametrize("distance", [WITHIN * 1.01, FAR, None], ids=["just not", "far", "unknown"])
def test_others_do_not(distance: float | None) -> None:
    """Each session has a link, and no link is asked how far it is for each."""
    rig = Rig(4, distance=distance).start()
    near, far = rig.open()
    assert near.moved and far.moved
    for number in rig.lines:
        rig.handle(number).distance = NEAR
    assert rig.open()[0].moved
    assert shared(rig) == []


def test_who_comes_near_shares() -> None:
    """The distance is looked at again now and then: the first look may have seen a busy moment."""
    rig = Rig(4, distance=FAR).start()
    assert rig.open()[0].moved
    rig.distance = NEAR
    for number in rig.lines:
        rig.handle(number).distance = NEAR
    rig.taking.pool.tidy()
    near, _ = rig.open()
    assert not near.moved
    assert rig.serving.ends[1].moved, "it stays where it is"


def test_zero_is_never() -> None:
    """Not even the nearest."""
    rig = Rig(4, within=0.0, distance=0.0).start()
    assert rig.open()[0].moved
    rig.taking.pool.tidy()
    assert rig.open()[0].moved


def test_visitors_that_wait_share_the_link_that_comes() -> None:
    """The first link serves all, in order, and one that has gone meanwhile is let be."""
    rig = Rig(0).start()
    visitors = [rig.visit() for _ in range(3)]
    gone: Deferred[Stream] = rig.taking.pool.open(Opening(Endpoint("192.0.2.1", 99), LOCAL))
    gone.addErrback(lambda failure: failure.trap(CancelledError) and None)
    last = rig.visit()
    gone.cancel()
    assert rig.taking.ends == {}
    rig.bring().flush()
    assert list(rig.taking.ends) == list(rig.serving.ends) == [*visitors, last]
    assert len(shared(rig)) == 1 and rig.taking.pool.sessions == 4
    assert not any(end.moved for end in rig.taking.ends.values())


def test_one_who_waits_gives_up_as_others_are_served() -> None:
    """What one does when it is served may make the next one go: nothing is opened for that."""
    rig = Rig(0).start()
    zeroth = rig.visit()
    first = rig.taking.pool.open(Opening(Endpoint("192.0.2.1", 98), LOCAL))
    second: Deferred[Stream] = rig.taking.pool.open(Opening(Endpoint("192.0.2.1", 99), LOCAL))
    second.addErrback(lambda failure: failure.trap(CancelledError) and None)
    third = rig.visit()
    near: list[End] = []

    def served(stream: Stream) -> None:
        near.append(End(stream))
        second.cancel()

    first.addCallback(served)
    rig.bring().flush()
    assert list(rig.serving.ends) == [zeroth, 98, third]
    near[0].stream.abort(Cause.IDLE)
    for port in (zeroth, third):
        rig.taking.ends[port].stream.abort(Cause.IDLE)
    rig.nothing_left()


def test_a_link_that_is_backed_up_is_not_shared_further() -> None:
    """New sessions have links of their own until it has room again."""
    rig = Rig(4, high_water=100).start()
    near, _ = rig.open()
    near.stream.write(b"x" * 200)
    rig.turn()
    port = rig.visit()
    assert rig.taking.ends[port].moved
    rig.flush()
    assert not rig.open()[0].moved


def test_a_link_that_is_backed_up_when_it_comes() -> None:
    """The end of its proof has not left yet: it is shared all the same, and its first session
    follows that."""
    rig = Rig(1).start()
    link = rig.link(rig.taking, 1)
    link.pauseProducing()
    port = rig.visit()
    near = rig.taking.ends[port]
    assert near.heard == []
    near.stream.write(b"first")
    rig.turn()
    assert near.heard == ["congested"]
    link.resumeProducing()
    rig.flush()
    assert near.heard == ["congested", "drained"]
    assert rig.serving.ends[port].heard == [b"first"]
    assert not rig.open()[0].moved


# A shared link goes.


def test_a_link_that_nobody_uses_goes() -> None:
    """After two looks: one may fall between two sessions."""
    rig = Rig(4).start()
    near, _ = rig.open()
    (number,) = shared(rig)
    near.stream.abort(Cause.IDLE)
    rig.flush()
    rig.taking.pool.tidy()
    rig.flush()
    assert shared(rig) == [number]
    near, _ = rig.open()
    rig.taking.pool.tidy()
    near.stream.abort(Cause.IDLE)
    rig.taking.pool.tidy()
    rig.flush()
    assert shared(rig) == [number]
    rig.taking.pool.tidy()
    rig.flush()
    assert shared(rig) == []
    assert number not in rig.taking.pool and number not in rig.serving.pool
    near, _ = rig.open()
    assert not near.moved, "the next one begins another"
    (number,) = shared(rig)
    near.stream.abort(Cause.IDLE)
    rig.taking.pool.tidy()
    rig.flush()
    assert shared(rig) == [number], "which is looked at twice as well"


def test_a_link_in_use_stays() -> None:
    """However often it is looked at, and whether anything moves."""
    rig = Rig(4).start()
    near, far = rig.open()
    for _ in range(5):
        rig.taking.pool.tidy()
        rig.flush()
    near.stream.write(b"on")
    rig.flush()
    assert far.heard == [b"on"]


@pytest.mark.parametrize("used", [True, False])
def test_a_link_that_loss_has_slowed(used: bool) -> None:
    """It takes no new sessions, and goes when its last one has been gone for a while."""
    rig = Rig(4).start()
    near, far = rig.open()
    (number,) = shared(rig)
    if not used:
        near.stream.abort(Cause.IDLE)
        rig.flush()
    rig.handle(number).slowed = True
    rig.rest()
    assert (number in rig.taking.pool) is used
    other, _ = rig.open()
    assert not other.moved
    if used:
        assert len(shared(rig)) == 2
        near.stream.write(b"still")
        rig.flush()
        assert far.heard == [b"still"]
        near.stream.finish()
        far.stream.finish()
        rig.flush()
        rig.taking.pool.tidy()
        rig.flush()
        assert number in rig.taking.pool and number in rig.serving.pool
        rig.rest()
        assert number not in rig.taking.pool and number not in rig.serving.pool
    other.stream.write(b"on the other")
    rig.flush()
    assert rig.serving.ends[2].heard == [b"on the other"]


@pytest.mark.parametrize(
    ("end", "size", "answer"), [("finished", CREDIT + 100, 30), ("given up", 30, 1)]
)
def test_what_an_unused_link_carries_still_arrives(end: str, size: int, answer: int) -> None:
    """The line has stood still since its last session was over for the taking end, which closes it
    then: that session's last words come whole, though the other end answers the first of them.

    :param size: bytes of the first piece that comes, and of the answer to it.
    """
    rig = Rig(1, high_water=1 << 20).start()
    port = rig.visit()
    near = rig.taking.ends[port]
    if end == "finished":
        rig.flush()
        rig.serving.ends[port].stream.finish()
        rig.flush()
        near.stream.write(MUCH[:CREDIT])
        near.stream.write(MUCH[CREDIT : 2 * CREDIT])
        near.stream.finish()
        assert near.over
    else:
        near.stream.abort(Cause.IDLE)
    for _ in range(3):
        rig.clock.advance(5)
        rig.taking.pool.tidy()
        rig.serving.pool.tidy()
    for _ in range(3):
        rig.deliver(1, True, size)
        rig.turn()
        rig.deliver(1, False, answer)
    rig.flush(1)
    far = rig.serving.ends[port]
    assert far.over
    if end == "finished":
        assert far.data == MUCH[: 2 * CREDIT] and far.heard[-1] != ("closed", Cause.LOST)
    else:
        assert far.events == [("closed", Cause.IDLE)]
    assert 1 not in rig.taking.pool and 1 not in rig.serving.pool


def test_a_link_is_used_while_bytes_wait_to_leave_it() -> None:
    """A slow line may take longer for its last session's bytes than a link may stay unused."""
    rig = Rig(1, high_water=100).start()
    near, far = rig.open()
    far.stream.finish()
    rig.flush()
    near.stream.write(MUCH[:CREDIT])
    near.stream.finish()
    assert rig.taking.pool.sending
    for _ in range(2 * CREDIT // 1000):
        rig.clock.advance(2 * LEAVING_TIMEOUT)
        rig.taking.pool.tidy()
        rig.turn()
        rig.deliver(1, True, 1000)
    assert far.data == MUCH[:CREDIT] and far.heard[-1] == ("closed", None)
    assert not rig.taking.pool.sending
    rig.rest()
    assert 1 not in rig.taking.pool


def test_a_peer_that_reads_nothing_has_no_more_links_kept_than_that() -> None:
    """One that has each shared link replaced, by RETIRE, and leaves what is on it unread."""
    rig = Rig(1, high_water=100).start()
    for _ in range(10):
        near, _ = rig.open()
        number = near.mux.link_number
        near.stream.write(MUCH[:CREDIT])
        near.stream.abort(Cause.IDLE)
        rig.taking.pool.retire(number)
        rig.bring()
    kept = len(rig.taking.pool)
    assert kept > 10
    end = rig.clock.seconds() + 5 * MOST_RESTS + LEAVING_TIMEOUT + 10
    while rig.clock.seconds() < end:
        rig.clock.advance(5)
        rig.taking.pool.tidy()
    assert len(rig.taking.pool) == kept - 10


@pytest.mark.parametrize("alone", [True, False])
def test_what_is_on_its_way(alone: bool) -> None:
    """On shared links and others, as the system tells; what idle links and flows send is no
    session's."""
    rig = Rig(2).start()
    if alone:
        rig.taking.pool._sharing._apart = True
    near, _ = rig.open()
    assert near.moved is alone and not rig.taking.pool.sending
    busy = next(n for n in rig.lines if not rig.link(rig.taking, n).idle)
    rig.handle(busy).sending = True
    assert rig.taking.pool.sending
    rig.link(rig.taking, busy).flows = Mock()
    assert not rig.taking.pool.sending


def test_an_unused_link_that_the_other_end_does_not_close() -> None:
    """It is cut after a while: an end that never closes one would have all of them kept."""
    rig = Rig(1).start()
    near, _ = rig.open()
    near.stream.abort(Cause.IDLE)
    while rig.clock.seconds() < LEAVING_TIMEOUT + 10:
        rig.clock.advance(5)
        rig.taking.pool.tidy()
    assert 1 in rig.taking.pool
    rig.clock.advance(5)
    rig.taking.pool.tidy()
    assert 1 not in rig.taking.pool
    rig.nothing_left()


@pytest.mark.parametrize("used", [True, False])
def test_a_link_that_loss_has_slowed_on_the_way_back(used: bool) -> None:
    """Only the serving end knows, and asks for it until it is gone."""
    rig = Rig(4).start()
    near, _ = rig.open()
    (number,) = shared(rig)
    if not used:
        near.stream.abort(Cause.IDLE)
        rig.flush()
    slow = Handle(NEAR)
    slow.slowed = True
    rig.lines[number][1].getHandle = lambda: slow
    for _ in range(2):
        rig.serving.pool.tidy()
    assert rig.serving.unwanted == [number, number]
    for link in rig.serving.unwanted:
        rig.taking.pool.retire(link)
    rig.rest()
    assert (number in rig.taking.pool) is used
    assert rig.open()[0].stream.link_number != number
    near.stream.abort(Cause.IDLE)
    rig.rest()
    assert number not in rig.taking.pool
    rig.serving.pool.tidy()
    assert rig.serving.unwanted == [number, number]


def test_a_link_that_a_session_moves_to_is_replaced() -> None:
    """At once, as one that a visitor takes: the next session that moves should find one too."""
    rig = Rig(2).start()
    near, _ = rig.open()
    rig.settle()
    assert (rig.taking.pool.idle, rig.taking.wanted) == (2, 0)
    near.stream.write(MUCH)
    assert (rig.taking.pool.idle, rig.taking.wanted) == (1, 1)


@ENDS
def test_a_lost_link_is_replaced(taking: bool) -> None:
    """The next session begins another."""
    rig = Rig(4).start()
    near, far = rig.open()
    (number,) = shared(rig)
    rig.link(rig.taking if taking else rig.serving, number).abort("cut")
    rig.flush()
    assert near.heard == far.heard == [("closed", Cause.LOST)]
    near, far = rig.open()
    assert not near.moved
    assert shared(rig) != [number]
    near.stream.abort(Cause.IDLE)
    rig.nothing_left()


def test_the_other_end_forgets_as_well() -> None:
    """Of a link that is gone nothing is known there."""
    rig = Rig(4).start()
    near, _ = rig.open()
    rig.lines[shared(rig)[0]][0].lose()
    assert rig.serving.pool._sharing._links == rig.taking.pool._sharing._links == {}
    assert rig.serving.pool.sessions == rig.taking.pool.sessions == 0
    assert near.over


# The end.


def sides(rig: Rig, taking: bool) -> tuple[Side, Side]:
    """Who stops, and the other."""
    return (rig.taking, rig.serving) if taking else (rig.serving, rig.taking)


@ENDS
def test_stopping_with_sessions(taking: bool) -> None:
    """All are reset, and both ends know why; no link is left."""
    rig = Rig(3).start()
    pairs = [rig.open() for _ in range(3)]
    side, _ = sides(rig, taking)
    closed = side.pool.close(Cause.STOPPED, "stopping", linger=False)
    rig.flush()
    assert closed.called
    assert len(rig.taking.pool) == len(rig.serving.pool) == 0
    for pair in pairs:
        for end in pair:
            assert end.heard == [("closed", Cause.STOPPED)]
    assert not rig.clock.getDelayedCalls()


@ENDS
def test_stopping_before_the_last_bytes_are_read(taking: bool) -> None:
    """What the other end says of the first of them does not cost it the others."""
    rig = Rig(3).start()
    near, far = rig.open()
    number = rig.shared
    sender, reader = (near, far) if taking else (far, near)
    reader.stream.finish()
    rig.flush()
    for _ in range(4):
        sender.stream.write(b"x" * (WINDOW // 4))
    sender.stream.finish()
    rig.turn()
    assert sender.over
    side, other = sides(rig, taking)
    closed = side.pool.close(Cause.STOPPED, "stopping", linger=False)
    rig.deliver(number, taking, CREDIT + 2 * FRAME_SIZE)
    rig.turn()
    assert rig.lines[number][1 if taking else 0].outbox == window(1, CREDIT)
    assert not closed.called
    rig.deliver(number, not taking)
    other.pool.close(Cause.STOPPED, "it left", linger=True)
    rig.flush()
    assert reader.data == b"x" * WINDOW
    assert reader.events == ["ended", ("closed", None)]
    assert closed.called
    assert len(rig.taking.pool) == len(rig.serving.pool) == 0
    assert not rig.clock.getDelayedCalls()


def test_nothing_begins_at_a_serving_end_that_has_stopped() -> None:
    """A session whose opening has crossed with that is reset."""
    rig = Rig(3).start()
    rig.open()
    port = rig.visit()
    rig.turn()
    rig.serving.pool.close(Cause.STOPPED, "stopping", linger=False)
    rig.flush()
    assert port not in rig.serving.ends
    assert rig.taking.ends[port].heard == [("closed", Cause.LOST)]
    assert len(rig.taking.pool) == len(rig.serving.pool) == 0


@ENDS
def test_stopping_without_sessions(taking: bool) -> None:
    """A shared link that nobody uses is closed at once, lingering or not."""
    rig = Rig(3).start()
    near, _ = rig.open()
    near.stream.abort(Cause.IDLE)
    rig.flush()
    side, _ = sides(rig, taking)
    closed = side.pool.close(Cause.STOPPED, "stopping", linger=True)
    rig.flush()
    assert closed.called
    assert len(rig.taking.pool) == len(rig.serving.pool) == 0


@ENDS
def test_lingering(taking: bool) -> None:
    """Sessions under way end by themselves, and their link with the last of them."""
    rig = Rig(3).start()
    (one, far_one), (two, far_two) = rig.open(), rig.open()
    side, _ = sides(rig, taking)
    closed = side.pool.close(Cause.STOPPED, "the peer is stopping", linger=True)
    rig.flush()
    assert not closed.called and len(side.pool) == 1
    one.stream.write(b"x" * (2 * WINDOW))
    two.stream.abort(Cause.IDLE)
    rig.flush()
    assert far_one.data == b"x" * (2 * WINDOW), "there is no other link, and it goes on by credit"
    assert far_two.heard == [("closed", Cause.IDLE)]
    assert not closed.called
    one.stream.finish()
    far_one.stream.finish()
    rig.flush()
    assert one.events[-1] == far_one.events[-1] == ("closed", None)
    assert closed.called
    assert len(rig.taking.pool) == len(rig.serving.pool) == 0


def test_lingering_is_not_for_ever() -> None:
    """What is left after the time to part is cut."""
    rig = Rig(3).start()
    near, far = rig.open()
    closed = rig.taking.pool.close(Cause.STOPPED, "stopping", linger=True)
    rig.flush()
    rig.clock.advance(PARTING_TIMEOUT)
    rig.flush()
    assert closed.called
    assert near.heard == [("closed", Cause.STOPPED)]
    assert far.heard == [("closed", Cause.LOST)]


@ENDS
def test_stopping_while_one_moves(taking: bool) -> None:
    """Neither link is left, and who stops knows why."""
    rig = Rig(3).start()
    near, far = rig.open()
    near.stream.write(b"x" * (WINDOW + 1))
    assert len(rig.taking.pool._sharing._moving) == 1
    side, _ = sides(rig, taking)
    closed = side.pool.close(Cause.STOPPED, "stopping", linger=False)
    rig.flush()
    assert closed.called
    assert len(rig.taking.pool) == len(rig.serving.pool) == 0
    assert (near if taking else far).events[-1] == ("closed", Cause.STOPPED)
    # The other end hears of it by the one link or of its end by the other, whichever is first.
    assert near.over and far.over


def test_lingering_while_one_moves() -> None:
    """It goes where it goes, and on there."""
    rig = Rig(3).start()
    near, far = rig.open()
    near.stream.write(b"x" * (WINDOW + 1))
    closed = rig.taking.pool.close(Cause.STOPPED, "stopping", linger=True)
    rig.flush()
    assert near.moved and far.data == b"x" * (WINDOW + 1)
    near.stream.finish()
    far.stream.finish()
    rig.flush()
    assert near.events[-1] == far.events[-1] == ("closed", None)
    rig.serving.pool.close(Cause.STOPPED, "stopping", linger=True)
    rig.flush()
    assert closed.called


def test_stopping_while_one_waits_for_a_link() -> None:
    """It waits no longer, and goes on by credit if it may."""
    rig = Rig(1).start()
    near, far = rig.open()
    near.stream.write(b"x" * (WINDOW + 1))
    assert rig.taking.pool._sharing.waiting == 1
    rig.taking.pool.close(Cause.STOPPED, "stopping", linger=True)
    assert rig.taking.pool._sharing.waiting == 0
    rig.flush()
    assert far.data == b"x" * (WINDOW + 1)
    near.stream.finish()
    far.stream.finish()
    rig.flush()
    assert len(rig.taking.pool) == len(rig.serving.pool) == 0


# JOIN before what should have come first.


def test_join_before_the_word_that_the_shared_link_is_ready() -> None:
    """The serving end hears of links in any order: what it is asked to go on with is still to
    come, MUX and OPEN included."""
    rig = Rig(2)
    rig.taking.pool.start_over()
    rig.bring(confirm=False)
    port = rig.visit()
    (number,) = shared(rig)
    rig.confirm(3 - number)
    near = rig.taking.ends[port]
    near.stream.write(b"x" * (WINDOW + 1))
    rig.flush()
    assert port not in rig.serving.ends
    assert rig.serving.pool.get(number) is None
    rig.confirm(number)
    rig.flush()
    far = rig.serving.ends[port]
    assert near.moved and far.moved
    assert far.data == b"x" * (WINDOW + 1)
    near.stream.abort(Cause.IDLE)
    rig.nothing_left()


def test_join_before_the_opening_of_one_that_is_refused() -> None:
    """The link that came for it is free again."""
    rig = Rig(3).start()
    rig.open()
    rig.serving.denies = True
    port = rig.visit()
    near = rig.taking.ends[port]
    near.stream.write(b"x" * (WINDOW + 1))
    (new,) = rig.taking.pool._sharing._moving
    rig.deliver(new.number, True)
    (early,) = rig.serving.pool._sharing._early.values()
    while not early.over and rig.lines[shared(rig)[0]][0].outbox:
        rig.deliver(shared(rig)[0], True)
    assert early.over
    rig.flush()
    assert near.events[-1] == ("closed", Cause.DENIED)
    assert not rig.serving.pool._sharing._early
    assert new.idle
    rig.taking.ends[1].stream.abort(Cause.IDLE)
    rig.nothing_left()
