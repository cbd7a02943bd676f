"""Writes train.jsonl, valid.jsonl and test.jsonl of the appointments data set beside this file.

Each row pairs a sentence about an appointment with its five facts as JSON. First names, family names, reasons,
places and phrasings of one split occur in no other; days and times, of which there are few, occur in all of them.
The output is a function of SEED alone. Requires Python 3 and nothing else.
"""

import json
import pathlib
import random

SEED = 20261127
ROWS = {"train": 800, "valid": 60, "test": 60}
INSTRUCTION = "Appointment as JSON: "

FIRST_NAMES = {
    "train": """Ada Ahmed Aisha Alan Alice Amir Amy Andre Anna Anton Arjun Astrid Ayesha Beatrice Ben Bianca Bruno Camila
        Carl Carmen Cecilia Chen Chloe Claire Clara Daniel Daria David Deepa Diego Elena Elias Elif Emil Emma Erik Esther
        Ethan Eva Farid Fatima Felix Fiona Frank Freya George Grace Hana Hannah Harold Hassan Helen Henry Hiro Hugo Ian
        Ibrahim Ines Ingrid Irene Isaac Ivan Jack Jamal James Jane Jasmine Javier Jin Joan Joel John Jonas Jorge Julia
        Kamal Karen Karim Katya Keiko Kevin Kofi Lars Laura Layla Leo Lena Lin Linda Lucas Lucia Luis Magnus Maria Mark
        Marta Martin Maya Mei Michael Miguel Mila Mohamed Monica Nadia Naomi Nathan Nina Noah Nora Olga Oliver Omar Oscar
        Pablo Paul Pavel Pedro Peter Petra Priya Rachel Rafael Raj Rania Ravi Rebecca Rita Robert Rosa Ruth Samir Samuel
        Sanjay Sara Sofia Stefan Sven Tariq Teresa Thomas Tomas Vera Victor Wei William Yara Yusuf Zara Zoe""",
    "valid": "Albert Bella Cyrus Dalia Edgar Flora Gustav Heidi Igor Judith Kurt Lydia Mateo Noor Otto Pilar",
    "test": """Agnes Boris Corinne Dennis Edith Fabian Gloria Hamid Isabel Jerome Kirsten Lorenzo Mabel Nikolai Odette
        Patrick Quentin Regina Simon Tamara Ulrich Viola Walter Xenia""",
}
FAMILY_NAMES = {
    "train": """Abbott Adler Almeida Andersen Baker Banerjee Barnes Bauer Becker Bennett Berg Bianchi Boyle Brandt Brooks
        Carter Castillo Chang Clarke Cohen Costa Cruz Das Diaz Dubois Duncan Eriksen Evans Farouk Fernandez Fischer
        Fleming Fontaine Foster Fraser Garcia Gibson Gomez Gupta Haddad Hansen Harper Hoffman Huang Hughes Iyer Jackson
        Jansen Jensen Kapoor Keller Khan Kim Klein Kovacs Kumar Lambert Larsen Lee Lewis Lindgren Lopez Lund Malik Marino
        Mendes Meyer Mills Moore Moreau Morgan Murphy Nakamura Nguyen Nielsen Novak Okafor Olsen Ortiz Osman Parker Patel
        Pereira Peters Petrov Pham Popov Ramos Reyes Ricci Rivera Rossi Russo Saito Santos Sato Schmidt Shah Silva Singh
        Stein Suzuki Tanaka Torres Turner Vargas Vogel Wagner Walsh Wang Weber White Winter Wolf Wright Yamada Yilmaz
        Young Zhang Zimmer""",
    "valid": "Aoki Bishop Calder Dvorak Egan Forsyth Greco Holm Ibarra Jokinen Koenig Lindqvist Mercer Nolan",
    "test": """Archer Bellini Chandra Dawson Engel Figueroa Goldberg Hartley Ivanov Joshi Kendrick Laurent Medina Norris
        Okoye Prescott Quigley Romano Sawyer Thornton Underwood Vasquez Whitaker Zielinski""",
}
REASONS = {
    "train": """dentist appointment|haircut|eye exam|blood test|piano lesson|job interview|parent-teacher meeting|car
        inspection|tax consultation|physiotherapy session|house viewing|vaccination|driving lesson|violin lesson|team
        meeting|project review|bank appointment|passport renewal|kitchen fitting|boiler repair|window cleaning|dog
        grooming|cat checkup|swimming class|yoga class|guitar lesson|French lesson|lab tour|budget meeting|photo
        shoot|sales call|board meeting|contract signing|budget planning|wedding rehearsal|cooking class|dance class|school
        visit|planning session|design workshop|safety training|roof inspection|tire change|oil change|bike repair|laptop
        repair|insurance review|visa interview|book club|chess lesson|hearing test|skin check|knee scan|thesis
        defense|choir practice|coffee tasting|garden planning|furniture delivery|phone repair|museum tour|legal
        consultation|audition|birthday lunch|farewell dinner|product demo|staff training""",
    "valid": """pottery class|heart scan|brake check|loan meeting|drum lesson|cake tasting|data workshop|flu shot|mortgage
        review|suit fitting""",
    "test": """massage|root canal|singing lesson|carpet cleaning|pension review|dress fitting|Spanish lesson|allergy
        test|engine check|press briefing|wine tasting|archery class|ankle scan|printer repair|site visit|career
        coaching""",
}
PLACES = {
    "train": """Elm Street 12|Oak Avenue 7|Harbor Street 31|Mill Lane 4|Station Road 18|King Street 22|Park Avenue 9|River
        Road 45|Church Lane 3|Market Square 1|Hill Street 60|Garden Street 14|Bridge Street 27|School Lane 8|Lake Road
        33|the Northside Clinic|the Central Library|Room 204|Room 12|the City Hospital|Studio B|the Riverside Center|the
        Old Town Hall|the Lakeside Hotel|the Green Cafe|the Sunrise Bakery|the Main Office|Building C|the Westgate
        Mall|the Community Center|the Art Museum|Hall 3|the Blue Door Cafe|the Bayview Clinic|the Harper Building|the
        Second Floor Lounge|the Eastside Gym|the Maple Street Studio|Cedar Court 5|Willow Way 16|Sunset Boulevard 88|the
        Corner Garage|the Union Bank|the Rose Garden|Room 7|the Stone Bridge Inn|Pine Street 70|the Silver Salon|the
        Airport Terminal|the Grand Theater|Chestnut Street 41|the South Campus|the Tower Cafe|Lab 5|the Orchard School|the
        Pearl Restaurant|Victoria Road 19|the Hilltop Farm|Conference Room A|the Meadow Pharmacy""",
    "valid": """Birch Road 26|the Anchor Pub|Room 318|the Crescent Clinic|Foundry Lane 2|the Ivy Studio|the Quayside
        Office|Dock Street 55|Hall 9|the Beacon School""",
    "test": """Juniper Lane 23|the Copper Kettle|Room 415|the Fairview Clinic|Abbey Road 38|the Lighthouse Studio|Dock 6|the
        Juniper Hotel|Canal Street 52|the Falcon Garage|Hall 11|the Linden Center|Tulip Court 10|the Velvet Room|the
        Harvest Market|Quarry Hill 29""",
}
DAYS = """Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|tomorrow|January 5|February 14|March 3|April 22|May 9|June
    30|July 17|August 2|September 11|October 26|November 8|December 19""".replace("\n    ", " ").split("|")
TIMES = """8:00|8:30|9:00|9:15|9:45|10:00|10:30|11:00|11:20|11:45|12:30|13:00|13:15|14:00|14:30|14:50|15:00|15:45|16:00|16:10|
    16:30|17:00|17:15|18:00|18:30|19:00|19:45|8 am|9 am|10 am|11 am|1 pm|2 pm|3 pm|4 pm|5 pm|6 pm|7 pm|noon""".replace(
    "\n    ", ""
).split("|")

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


def with_article(reason):
    return ("an " if reason[0] in "aeiou" else "a ") + reason


def preposition(day):
    return day if day == "tomorrow" else f"on {day}"


def sentence(phrasing, facts):
    text = phrasing.format(a=with_article(facts["what"]), on=preposition(facts["day"]), **facts)
    return text[0].upper() + text[1:]


def rows(split, count, random_source):
    first, family = words(FIRST_NAMES[split]), words(FAMILY_NAMES[split])
    reasons, places = words(REASONS[split], "|"), words(PLACES[split], "|")
    seen = set()
    while len(seen) < count:
        who = random_source.choice(first)
        if random_source.random() < 0.6:
            who += " " + random_source.choice(family)
        facts = {
            "who": who,
            "what": random_source.choice(reasons),
            "day": random_source.choice(DAYS),
            "time": random_source.choice(TIMES),
            "place": random_source.choice(places),
        }
        # Every phrasing of a split occurs equally often.
        text = sentence(PHRASINGS[split][len(seen) % len(PHRASINGS[split])], facts)
        if text not in seen:
            seen.add(text)
            yield {"prompt": INSTRUCTION + text, "completion": json.dumps(facts, ensure_ascii=False)}


def main():
    random_source = random.Random(SEED)
    folder = pathlib.Path(__file__).parent
    for split, count in ROWS.items():
        made = list(rows(split, count, random_source))
        random_source.shuffle(made)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
