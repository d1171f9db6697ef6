from app.web.places import Places, Room


def test_one_client_has_so_many_places_and_all_together_so_many() -> None:
    places = Places(3, 2)
    assert [places.take("2001:db8::1"), places.take("2001:db8::2")] == [True, True]
    assert not places.take("2001:db8::3")
    assert places.take("192.0.2.7")
    assert not places.take("192.0.2.8")


def test_a_place_that_is_given_back_is_for_the_next() -> None:
    places = Places(2, 1)
    assert places.take("192.0.2.7")
    assert not places.take("::ffff:192.0.2.7")
    places.leave("192.0.2.7")
    assert places.take("::ffff:192.0.2.7")


def test_each_client_may_hold_as_many_bytes_as_are_left() -> None:
    room = Room(100)
    with room.share("192.0.2.7") as first, room.share("192.0.2.8") as second:
        assert first.grow(50)
        assert not first.grow(1)
        assert [second.grow(25), second.grow(1)] == [True, False]
        first.leave()
        assert second.grow(25)
    with room.share("192.0.2.7") as first:
        assert first.grow(50)
