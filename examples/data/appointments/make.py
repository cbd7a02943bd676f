"""Writes train.jsonl, valid.jsonl and test.jsonl of the appointments data set beside this file.

Each row pairs a sentence about an appointment with its five facts as JSON. Names, reasons, places and phrasings of
one split occur in no other; days and times, of which there are few, occur in all of them. The output is a function
of SEED alone. Requires Python 3 and nothing else.
"""

import json
import pathlib
import random

SEED = 20261127
ROWS = {"train": 800, "valid": 48, "test": 60}

# The first word of a name, a reason or a street is one that common tokenizers keep whole both with and without a space
# before it. Copying it into quotes then takes one token, which a small model learns in minutes; spelling is another task.
FIRST_NAMES = {
    "train": """Adam Alexander Alice Andrew Anna Arthur Ben Bill Carl Charles Chris Daniel David Edward Elizabeth Frank
        Fred George Grant Henry Jack James Jane Jean Jim John Joseph Kim Lee Leon Lily Louis Luke Maria Mark Martin Mary
        Matthew Michael Neil Paul Peter Phil Richard Robert Sam Samuel Sarah Stephen Thomas Tim Victor William""",
    "valid": "Anne Bob Donald Greg Jacob Josh Max Ray Rose Tom",
    "test": "Alex Ann Christian Dan Emily Jackson Jamie Jeff Ken Lewis Madison Marie Matt Nick Scott Simon Taylor Virginia",
}
FAMILY_NAMES = {
    "train": """Adams Allen Anderson Armstrong Bailey Baker Barnes Bell Bennett Black Boyd Bradley Brooks Brown Bryant Burke
        Burns Butler Campbell Carpenter Carter Chapman Clark Cole Coleman Collins Cook Cooper Cox Crawford Davis Dixon
        Duncan Edwards Elliott Ellis Evans Ferguson Fisher Ford Foster Freeman Garcia Gibson Gordon Graham Gray Green
        Griffin Hall Hamilton Harris Harrison Hart Henderson Holmes Howard Hughes Hunter Jenkins Johnson Jones Kelly Kennedy
        King Knight Lawrence Lopez Marshall Martinez Miller Mitchell Moore Morgan Morris Murphy Murray Nelson Owens Palmer
        Parker Patterson Perry Peterson Phillips Porter Powell Price""",
    "valid": "Reed Reynolds Rice Richards Rivera Roberts Robinson Rogers",
    "test": """Ross Russell Sanders Shaw Simpson Smith Spencer Stevens Stewart Sullivan Thompson Torres Tucker Turner Wagner
        Walker Wallace Watson Webb Wells Williams Wilson Wright Young""",
}
# A reason is one of these words before one of those nouns.
REASONS = {
    "train": {
        "lesson class workshop exam course": """driving French Italian Japanese rowing reading writing history language law math
            music science ski speech stage voice film web data""",
        "review meeting update report briefing": """budget project contract safety design product customer network inventory legal
            energy training quality team market school security staff supply""",
        "repair inspection check cleaning delivery": """car window camera phone generator watch table wall water gas oil pool
            house door fire solar""",
        "scan test visit": "eye blood skin lung hip back foot balance memory hand head neck bone stress",
        "party tour show": "family museum book dog tree video summer river star wine wood",
    },
    "valid": {
        "tutorial": "Arabic radio German English computer audio",
        "talk": "research food policy weather trade",
        "examination": "heart brain tooth",
        "festival": "song flower game bird",
    },
    "test": {
        "session": "Spanish photo running sleep",
        "consultation": "tax housing fashion travel",
        "service": "engine printer vehicle",
        "treatment": "hair",
        "event": "press business winter social health",
    },
}
STREETS = {
    "train": """Apple Bank Bay Bell Blue Church City East Farm Field Forest Gate Gold Grand Green Hill Home King Lake Light Long
        Main Market Mill Moon North Ocean Old Park Prince Queen River Rock Royal School Sea Silver Sky South Spring Station
        Stone Summer Union West White Wood""",
    "valid": "Atlantic Black Dark Fort Pacific Red Sand Sun Washington Yellow",
    "test": "Edge Golden Lincoln Newton Rain Salt Snow Star Tree Water Wild Wind Winter",
}
STREET_KINDS = {"train": "Street|Avenue|Lane|Road|Court|Square|Way", "valid": "Alley|Path", "test": "Row|Drive"}
VENUES = {
    "train": (
        """Blue Green Golden Silver Red White Old New Northern Eastern Central Lake River Corner Royal Little Grand
        Crystal Paper Stone Iron Happy Quiet Electric Maritime Imperial Summer Winter Phoenix Tiger""",
        """Cafe|Clinic|Library|Hotel|Bakery|Gym|Garage|Bank|Theater|Pharmacy|Restaurant|Museum|Gallery|Hospital|Inn|Pub|Office
        |Warehouse|Bookshop|Town Hall|Sports Club|Community Hall|Department Store""",
    ),
    "valid": ("Diamond Harbor Valley Orange", "Studio|Lodge"),
    "test": ("Copper Lighthouse Harvest Saturn Mountain Castle Ocean", "Center|Terrace|House|Palace"),
}
ROOMS = {"train": "Room|Lab|Building|Gate", "valid": "Box", "test": "Hall|Unit"}
DAYS = """Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|tomorrow|January 5|February 14|March 3|April 22|May 9|
    June 30|July 17|August 2|September 11|October 26|November 8|December 19"""
TIMES = """8:00|8:30|9:00|9:15|9:45|10:00|10:30|11:00|11:20|11:45|12:30|13:00|13:15|14:00|14:30|14:50|15:00|15:45|16:00|16:10|
    16:30|17:00|17:15|18:00|18:30|19:00|19:45|8 am|9 am|10 am|11 am|1 pm|2 pm|3 pm|4 pm|5 pm|6 pm|7 pm|noon"""

# {a} is the reason with its article; {on} is the day with its preposition.
PHRASINGS = {
    "train": [
        "{who} has {a} {on} at {time}, {place}.",
        "{a} for {who} {on} at {time} at {place}.",
        "Please book {a} for {who} {on}, {time}, at {place}.",
        "Remind {who}: {what} at {place}, {day} at {time}.",
        "{who} will be at {place} {on} at {time} for {a}.",
        "{day}, {time}: {what} with {who} at {place}.",
        "I am meeting {who} at {place} {on} at {time} for {a}.",
        "At {time} {on}, {who} has {a} at {place}.",
        "Could you put {a} with {who} into my calendar? It is {on} at {time} in {place}.",
        "{what}: {who}, {day}, {time}, {place}.",
        "Don't forget that {who} has {a} at {place} {on}. It starts at {time}.",
        "We moved the {what} of {who} to {day} at {time}; the place is {place}.",
        "{who} asked for {a} {on} at {time}. We meet at {place}.",
        "{on} {who} needs to be at {place} by {time} for {a}.",
        "New appointment for {who}: {what}, {place}, {day}, {time}.",
        "{place}, {day} at {time}: {what} for {who}.",
        "The {what} with {who} is {on} at {time} in {place}.",
        "Can {who} come to {place} {on} at {time}? It is for {a}.",
        "{who} confirmed the {what} {on}, {time}, at {place}.",
        "Let {who} know that the {what} takes place at {place} {on} at {time}.",
        "Schedule {a}: {who}, {time} {on}, {place}.",
        "{who} is expected at {place} at {time} {on} for {a}.",
        "My {what} with {who} starts at {time} {on} at {place}.",
        "There is {a} at {place} {on} at {time} with {who}.",
        "Hi, this is {who}. I have {a} at {place} {on} at {time}.",
        "From {time} {on} {who} is busy: {what} at {place}.",
        "It is settled: {who}, {what}, {place}, {day} at {time}.",
        "{who} wrote that the {what} will be {on} at {time}, and that we meet at {place}.",
        "Write down {a} for {who} at {time} {on}. Place: {place}.",
        "We expect {who} {on} at {time} at {place} for {a}.",
        "For the {what} {on}, {who} should arrive at {place} at {time}.",
        "{time} {on} works for {who}, so the {what} will be at {place} then.",
        "Meet {who} {on} for {a}. Time: {time}. Place: {place}.",
        "The office booked {a} at {place} for {who}, {day} at {time}.",
        "{who} cannot make it earlier, so the {what} is {on} at {time}, {place}.",
        "Note to self: {what} with {who}, {time}, {day}, {place}.",
        "How about {day} at {time} for the {what}? {who} suggests {place}.",
        "Go to {place} {on}, {time}. {who} is waiting there for {a}.",
        "Changed: the {what} at {place} with {who} begins {on} at {time}.",
        "{who} and I have {a} {on}; {place}, {time}.",
        "Reminder: {what} for {who}, {place}, {on} at {time}.",
        "Diary: {who}, {what}, {time}, {day}, {place}.",
        "Booking: {day}, {time}, {place}, {who}, {what}.",
        "Hold {day} at {time} for {who}: {what} in {place}.",
        "Block {time} {on} for {a} with {who} at {place}.",
        "Keep {day}, {time}, free, because {who} has {a} at {place}.",
        "Agenda for {day}: at {time} {what} with {who}, {place}.",
        "Fixed date: {day}, {time}, {who}, {place}, {what}.",
        "Message from {who}: {what} at {place}, {day}, {time}.",
        "Update: {who} now has {a} {on} at {time}, {place}.",
        "Event: {what}. Guest: {who}. When: {day}, {time}. Where: {place}.",
        "Where: {place}. When: {day} at {time}. Who: {who}. What: {what}.",
        "Set aside {time} {on}: {who} comes to {place} for {a}.",
        "Drive {who} to {place} {on} for {a}; be there at {time}.",
        "Enter this: {what}, {who}, {place}, {time}, {day}.",
        "Everyone meets {on} at {time}, since {who} gives {a} at {place}.",
        "Put {who} down for {a} {on}. {place}, {time}.",
        "Good news: {place} is free {on} at {time} for the {what} of {who}.",
    ],
    "valid": [
        "Add {a} {on} at {time} for {who}; it happens at {place}.",
        "{who} is coming to {place} for {a} {on} at {time}.",
        "Our {what} is at {place}. {who} will be there {on} at {time}.",
        "Calendar entry: {who}, {day}, {time}, {what}, {place}.",
        "{on} at {time} it is time for the {what} of {who} at {place}.",
        "Reserve {time} {on} for {who}, who has {a} at {place}.",
        "As agreed with {who}: {what} at {place}, {day}, {time}.",
        "{who} invited me to {a} at {place} {on} at {time}.",
    ],
    "test": [
        "{who} got {a} at {place}, namely {on} at {time}.",
        "Please note: {on} at {time} {who} is at {place} for {a}.",
        "The next {what} for {who} is planned for {day}, {time}, at {place}.",
        "Save the date for {who}: {day} at {time}, {what}, {place}.",
        "I promised {who} {a} {on}; let us say {time} at {place}.",
        "Tell me when it is {time} {on}: then {who} has {a} at {place}.",
        "{place} is where {who} goes {on} at {time} for {a}.",
        "{a} was arranged for {who}. Be at {place} {on} at {time}.",
    ],
}


def words(text, separator=None):
    """Splits a list that is wrapped over lines."""
    return [" ".join(item.split()) for item in text.split(separator)]


def reason(split, source):
    nouns = source.choice(list(REASONS[split]))
    return source.choice(words(REASONS[split][nouns])) + " " + source.choice(words(nouns))


def place(split, source):
    kind = source.choice(["street", "street", "venue", "venue", "room"])
    if kind == "street":
        street_kind = source.choice(words(STREET_KINDS[split], "|"))
        return f"{source.choice(words(STREETS[split]))} {street_kind} {source.randint(1, 99)}"
    if kind == "room":
        return f"{source.choice(words(ROOMS[split], '|'))} {source.choice([*range(1, 13), *range(101, 420, 7)])}"
    names, kinds = VENUES[split]
    return f"the {source.choice(words(names))} {source.choice(words(kinds, '|'))}"


def sentence(phrasing, facts):
    article = "an" if facts["what"][0] in "aeiouAEIO" else "a"
    day = facts["day"]
    on = day if day == "tomorrow" else f"on {day}"
    text = phrasing.format(a=f"{article} {facts['what']}", on=on, **facts)
    return text[0].upper() + text[1:]


def rows(split, count, source):
    first, family = words(FIRST_NAMES[split]), words(FAMILY_NAMES[split])
    seen = set()
    while len(seen) < count:
        who = source.choice(first)
        if source.random() < 0.6:
            who += " " + source.choice(family)
        facts = {
            "who": who,
            "what": reason(split, source),
            "day": source.choice(words(DAYS, "|")),
            "time": source.choice(words(TIMES, "|")),
            "place": place(split, source),
        }
        # Every phrasing of a split occurs equally often.
        text = sentence(PHRASINGS[split][len(seen) % len(PHRASINGS[split])], facts)
        if text not in seen:
            seen.add(text)
            yield {"prompt": text, "completion": json.dumps(facts, ensure_ascii=False)}


def main():
    folder = pathlib.Path(__file__).parent
    for split, count in ROWS.items():
        source = random.Random(f"{split} {SEED}")
        made = list(rows(split, count, source))
        source.shuffle(made)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
