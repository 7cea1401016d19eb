"""From raw rows of terminal runs to one complete, ordered, typed record each. Pure: nothing is read or written."""
