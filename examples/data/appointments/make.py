"""Writes train.jsonl, valid.jsonl and test.jsonl of the appointments data set beside this file.

Each row pairs a sentence about an appointment with its five facts as JSON. Names, reasons, places and phrasings of
one split occur in no other; days and times, of which there are few, occur in all of them. The output is a function
of SEED alone. Requires Python 3 and nothing else.
"""

import json
import pathlib
import random

SEED = 20261127
ROWS = {"train": 800, "valid": 40, "test": 60}

FIRST_NAMES = {
    "train": """Ada Adele Ahmed Aisha Alan Alfred Alice Amina Amir Amy Andre Andrew Angela Anna Anton Arjun Arthur Astrid
        Audrey Ayesha Barbara Basil Beatrice Ben Bertha Bianca Boyd Brenda Brian Bridget Bruno Camila Carl Carmen Cecilia
        Chandler Charles Chen Chloe Claire Clara Clement Craig Curtis Daisy Daniel Daria David Deborah Deepa Derek Diego
        Dorothy Douglas Eduardo Edwin Eleanor Elena Elias Elif Emil Emma Eric Erik Ernest Esther Ethan Eugene Eva Evelyn
        Farid Fatima Felix Fergus Fiona Florence Francis Frank Freya Gavin George Gerald Gilbert Grace Greta Hana Hannah
        Harold Harriet Hassan Hector Helen Henry Herbert Hiro Hugo Ian Ibrahim Ines Ingrid Irene Isaac Ivan Ivy Jack Jamal
        James Jane Jasmine Javier Jean Jin Joan Joel John Jonas Jorge Josephine Julia Kamal Karen Karim Katya Keiko Kevin
        Kofi Lars Laura Lawrence Layla Leo Lena Leonard Lin Linda Louis Lucas Lucia Luis Magnus Malcolm Margaret Maria Mark
        Marta Martin Matilda Maya Mei Michael Miguel Mila Mildred Mohamed Monica Nadia Naomi Nathan Nigel Nina Noah Nora
        Olga Oliver Olivia Omar Oscar Pablo Pamela Paul Pavel Pedro Penelope Peter Petra Philip Priya Rachel Rafael Raj
        Ralph Rania Ravi Raymond Rebecca Rita Robert Roland Rosa Rupert Ruth Samir Samuel Sanjay Sara Sebastian Sheila
        Sofia Stefan Stella Sven Sylvia Tariq Teresa Theodore Thomas Tobias Tomas Ursula Valerie Vera Victor Vincent
        Vivian Warren Wei Wesley Wilfred William Winston Yara Yusuf Zara Zoe""",
    "valid": "Albert Bella Cyrus Dalia Edgar Flora Gustav Heidi Igor Judith Kurt Lydia Mateo Noor Otto Pilar",
    "test": """Agnes Boris Corinne Dennis Edith Fabian Gloria Hamid Isabel Jerome Kirsten Lorenzo Mabel Nikolai Odette
        Patrick Quentin Regina Simon Tamara Ulrich Viola Walter Xenia""",
}
FAMILY_NAMES = {
    "train": """Abbott Adler Aldridge Almeida Andersen Ashworth Baker Banerjee Barnes Bauer Becker Bennett Berg Bianchi
        Blackwood Boyle Brandt Brooks Buchanan Campbell Cartwright Castillo Chang Churchill Clarke Cohen Costa Crawford
        Cruz Das Delgado Diaz Donovan Dubois Duncan Ellsworth Eriksen Evans Farouk Fernandez Fischer Fitzgerald Fleming
        Fontaine Foster Fraser Gallagher Garcia Gibson Gomez Greenwood Gupta Haddad Hansen Harper Hawthorne Hoffman Huang
        Hughes Iyer Jackson Jansen Jensen Kapoor Keller Khan Kim Klein Kovacs Kumar Lambert Larsen Lee Lewis Lindgren Lopez
        Lund MacDonald Malik Marino Maxwell Mendes Meyer Middleton Mills Montgomery Moore Moreau Morgan Murphy Nakamura
        Nguyen Nielsen Novak Okafor Olsen Ortiz Osman Palmer Patel Pemberton Pereira Petrov Pham Popov Ramos Reyes Ricci
        Richardson Rivera Rossi Russo Saito Santos Sato Schmidt Shah Sheridan Silva Singh Stein Sullivan Suzuki Tanaka
        Templeton Torres Turner Vargas Vogel Wagner Walsh Wang Weber Wellington White Winter Wolf Wright Yamada Yilmaz
        Young Zhang Zimmer""",
    "valid": "Aoki Bishop Calder Dvorak Egan Forsyth Greco Holm Ibarra Jokinen Koenig Lindqvist Mercer Nolan",
    "test": """Archer Bellini Chandra Dawson Engel Figueroa Goldberg Hartley Ivanov Joshi Kendrick Laurent Medina Norris
        Okoye Prescott Quigley Romano Sawyer Thornton Underwood Vasquez Whitaker Zielinski""",
}
# A reason is one of a topic's words before one of its nouns, or a word of the list "whole".
REASONS = {
    "train": {
        "lesson class workshop": """piano driving violin guitar French dance cooking chess swimming yoga sewing painting
            Italian trumpet juggling calligraphy fencing climbing beekeeping ballet karate ukulele knitting tennis rowing
            accordion judo skating surfing origami photography woodworking Japanese""",
        "review meeting update": """budget project contract safety insurance design salary sales planning product marketing
            quarterly supplier customer network inventory recruiting legal energy warehouse export training""",
        "repair inspection check": """roof boiler bike laptop tire oven elevator window camera phone chimney fridge garage
            heater generator fence dishwasher alarm watch tractor scooter pump""",
        "exam scan test": "eye blood knee skin hearing lung hip back foot shoulder kidney wrist balance memory jaw",
        "whole": """dentist appointment|haircut|vaccination|job interview|house viewing|furniture delivery|museum tour|board
            meeting|birthday lunch|farewell dinner|book club|dog grooming|passport renewal|thesis defense|audition|wedding
            rehearsal|tax consultation|coffee tasting|parent evening|blood donation|cat checkup|business breakfast|fire
            drill|poetry reading|apartment handover|car wash|visa interview|choir practice|physiotherapy|sound check""",
    },
    "valid": {
        "tutorial": "pottery drum Arabic robotics",
        "talk": "mortgage pricing merger",
        "scan": "heart liver",
        "whole": "suit fitting|flu shot|cake order|key handover",
    },
    "test": {
        "session": "singing archery Spanish karaoke",
        "briefing": "pension press election",
        "service": "engine printer bathroom",
        "examination": "ankle allergy",
        "whole": "massage|root canal|dress fitting|wine auction|career coaching|family reunion",
    },
}
STREETS = {
    "train": """Elm Oak Harbor Mill Station King Park River Church Market Hill Garden Bridge School Lake Cedar Willow Sunset
        Pine Chestnut Victoria Maple Castle Forest Spring Meadow Orchard Railway Windmill Cherry Walnut Amber Granite Coral
        Wellington Lincoln Jefferson Columbus Mozart Newton Darwin Pearl Silver Falcon Eagle Heron Swallow Badger Clover
        Lavender Rosemary Thistle Saddler Weaver Cooper Fisher Potter Carpenter Lantern Compass Anchor""",
    "valid": "Birch Foundry Dock Raven Saffron",
    "test": "Juniper Abbey Canal Tulip Quarry Kestrel Lombard Barley",
}
STREET_KINDS = {"train": "Street|Avenue|Lane|Road|Court|Square|Way", "valid": "Alley|Path", "test": "Row|Drive"}
VENUES = {
    "train": (
        """Blue Green Golden Silver Red White Old New Northside Eastside Central Lakeside Riverside Sunrise Corner Hilltop
        Royal Little Grand Crystal Paper Stone Iron Wooden Happy Quiet Lucky Electric Maritime Botanic Imperial Midnight
        Summer Winter Marble Bamboo Magnolia Sycamore Phoenix Dolphin Panda Tiger""",
        """Cafe|Clinic|Library|Hotel|Bakery|Gym|Garage|Bank|Theater|Pharmacy|Restaurant|Museum|Salon|Gallery|Hospital|Inn|Pub
        |Office|Warehouse|Bookshop|Tea House|Town Hall|Sports Club|Community Hall|Department Store""",
    ),
    "valid": ("Crescent Ivy Quayside Beacon Opal", "Studio|Lodge|Annex|Arcade"),
    "test": ("Copper Fairview Lighthouse Linden Velvet Harvest Orchid Saturn", "Kettle|Center|Pavilion|Terrace|Tavern"),
}
ROOMS = {"train": "Room|Lab|Building|Floor|Gate", "valid": "Booth", "test": "Hall|Suite"}
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
    if nouns == "whole":
        return source.choice(words(REASONS[split][nouns], "|"))
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
    source = random.Random(SEED)
    folder = pathlib.Path(__file__).parent
    for split, count in ROWS.items():
        made = list(rows(split, count, source))
        source.shuffle(made)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
