import threading

from app.web.sockets.places import Lane, Places, Room, Turns
from tests.support.waiting import wait_until


def test_places_are_limited_per_client_and_in_total() -> None:
    places = Places(3, 2)
    assert [places.take("2001:db8::1"), places.take("2001:db8::2")] == [True, True]
    assert not places.take("2001:db8::3")
    assert places.take("192.0.2.7")
    assert not places.take("192.0.2.8")


def test_a_released_place_can_be_taken_again() -> None:
    places = Places(2, 1)
    assert places.take("192.0.2.7")
    assert not places.take("::ffff:192.0.2.7")
    places.leave("192.0.2.7")
    assert places.take("::ffff:192.0.2.7")


def test_a_place_is_taken_over_from_the_client_with_the_most() -> None:
    places = Places(3, 3)
    assert [places.take("192.0.2.7") for _ in range(2)] == [True, True]
    assert places.take_over("192.0.2.8") is None, "a place is still free"
    assert places.take("192.0.2.7")
    assert not places.take("192.0.2.8")
    assert places.take_over("192.0.2.8") == "192.0.2.7"
    assert places.take_over("192.0.2.8") is None, "the newcomer would then have the most"


def test_a_client_may_hold_at_most_as_many_bytes_as_are_left() -> None:
    room = Room(100)
    with room.share("192.0.2.7") as first, room.share("192.0.2.8") as second:
        assert first.grow(50)
        assert not first.grow(1)
        assert [second.grow(25), second.grow(1)] == [True, False]
        first.leave()
        assert second.grow(25)
    with room.share("192.0.2.7") as first:
        assert first.grow(50)


def test_the_next_turn_goes_to_the_client_that_waited_longest_since_its_last() -> None:
    turns = Turns(2, 1)
    done: list[str] = []
    threads: list[threading.Thread] = []

    def take(address: str) -> None:
        with turns.turn(address):
            done.append(address)

    def wait_for_turn(address: str) -> None:
        threads.append(threading.Thread(target=take, args=[address]))
        threads[-1].start()

    with turns.turn("192.0.2.1"):
        for _ in range(3):
            wait_for_turn("192.0.2.1")
        wait_for_turn("192.0.2.2")
        wait_until(lambda: done == ["192.0.2.2"])
    for thread in threads:
        thread.join(10)
    assert done == ["192.0.2.2"] + 3 * ["192.0.2.1"]


def test_a_request_in_a_lane_is_served_once_its_client_has_room_unless_it_gives_up() -> None:
    lane = Lane[int](2, 1)
    for number, client in enumerate("aaabcc"):
        lane.wait(client, number)
    assert [lane.next(), lane.next(), lane.next()] == [0, 3, None]
    lane.give_up("a", 1)
    lane.give_up("c", 4)
    lane.leave("b")
    assert [lane.next(), lane.next()] == [5, None]
    lane.leave("c")
    assert lane.next() is None, "the first client is at its limit"
    lane.leave("a")
    assert lane.has_waiting
    assert [lane.next(), lane.has_waiting] == [2, False]
