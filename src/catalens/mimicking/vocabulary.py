"""Words that shops use -> what is drawn for them.

    sees("Borsa")   ->  ("kind", "Tote Bag")        sees("righe") -> ("pattern", "Striped")
    sees("Denim")   ->  ("material", "Blue")        sees("Oslo")  -> None

English, French, German, Italian and Spanish; written without accents and in the singular, forms that end in s, es, e
or n are found as well. A material is seen by its usual colour, where no other colour is named.
"""

import re
import unicodedata
from functools import lru_cache

KIND_WORDS = {
    "Tote Bag": "bag handbag tote purse clutch satchel sac tasche borsa borse bolso",
    "Backpack": "backpack rucksack rucksacke zaino mochila schoolbag",
    "Suitcase": "suitcase luggage trolley travel case box chest trunk koffer valise valigia maleta boite kiste "
    "scatola caja",
    "Wallet": "wallet cardholder leathergood good portefeuille geldborse portafoglio cartera book phone",
    "T-Shirt": "t-shirt tshirt tee top polo jersey jumper sweater sweatshirt hoodie pullover knit knitwear pull "
    "maglia maglietta maglione camiseta sueter oberteil",
    "Shirt": "shirt blouse chemise hemd bluse camicia camisa blusa",
    "Trench Coat": "coat jacket blazer parka trench outerwear gilet vest manteau veste mantel jacke cappotto giacca "
    "abrigo chaqueta cape poncho",
    "Dress": "dress gown jumpsuit robe kleid kleider vestito abito vestido",
    "Trousers": "trouser pant jean short legging bottom chino pantalon hose pantaloni pantaloncini jogger",
    "Skirt": "skirt jupe rock gonna falda",
    "Scarf": "scarf scarves shawl stole foulard echarpe schal tuch sciarpa bufanda accessory accessories accessoire "
    "accessori tie cravate towel curtain rug carpet",
    "Sneaker": "sneaker trainer shoe footwear loafer sandal chaussure schuh scarpa scarpe zapato zapatilla",
    "Boot": "boot botte stiefel stivale stivali bota",
    "Cap": "cap hat beanie headwear casquette chapeau mutze hut cappello gorra sombrero",
    "Belt": "belt ceinture gurtel cintura cinturon strap",
    "Sunglasses": "sunglass eyewear glasses lunette brille occhiali gafas",
    "Watch": "watch clock montre uhr orologio orologi reloj timepiece",
    "Umbrella": "umbrella parapluie regenschirm ombrello paraguas parasol",
    "Mug": "mug cup kitchen bowl plate pot glass tasse becher tazza taza cuisine kuche cucina cocina washbasin sink "
    "bathroom bath toilet",
    "Cushion": "cushion pillow blanket home textile coussin kissen cuscino cojin mattress",
    "Perfume": "perfume fragrance bottle vase soap beauty cosmetic parfum profumo colonia candle",
    "Chair": "chair armchair seat stool bench office chaise fauteuil stuhl sessel sedia poltrona silla",
    "Table": "table desk tisch tavolo mesa bureau schreibtisch",
    "Sofa": "sofa couch settee divan canape divano living loveseat",
    "Bed": "bed bedroom lit bett letto cama bunk crib",
    "Cabinet": "cabinet wardrobe bookcase dresser shelf shelve cupboard drawer closet sideboard schrank regal "
    "armoire etagere armadio armario fridge oven",
    "Lamp": "lamp light lighting lampe leuchte lampada lampara chandelier lantern",
    "Door": "door window porte fenetre tur fenster porta finestra puerta ventana gate",
    "Plant": "plant tree exterior outdoor garden flower ficus jardin pflanze pianta planta baum arbre",
}
COLOUR_WORDS = {
    "Black": "black noir noire schwarz nero nera negro negra ebony onyx anthracite",
    "White": "white blanc blanche weiss bianco bianca blanco blanca ivory optic",
    "Red": "red rouge rot rosso rossa rojo roja burgundy crimson scarlet bordeaux cherry",
    "Blue": "blue bleu bleue blau blu azul cobalt indigo sky azzurro",
    "Green": "green vert verte grun verde olive khaki emerald sage moss",
    "Yellow": "yellow jaune gelb giallo gialla amarillo amarilla lemon mustard",
    "Pink": "pink rose rosa fuchsia blush coral peach",
    "Purple": "purple violet violette lila viola morado lilac lavender plum",
    "Orange": "orange arancione naranja terracotta rust apricot",
    "Brown": "brown marron brun braun marrone chocolate tan cognac mahogany walnut",
    "Beige": "beige camel sand cream ecru taupe honey stone nude creme crema natural",
    "Grey": "grey gray gris grise grau grigio grigia charcoal slate graphite",
    "Navy": "navy marine midnight",
}
PATTERN_WORDS = {
    "Striped": "stripe striped pinstripe raye rayure gestreift streifen riga righe rigato raya",
    "Checked": "check checked chequered tartan plaid gingham carreaux karo kariert quadri quadro cuadro",
    "Dotted": "dot dotted polka spotted poi pois gepunktet punkte lunare floral",
    "Plain": "plain solid uni unie einfarbig liso",
}
TRIM_WORDS = {
    "Gold-Trim": "gold golden gold-trim gold-tone brass dore or oro dorado messing ottone",
    "Silver-Trim": "silver silver-trim silver-tone steel chrome metal iron argent silber argento plata stahl acier",
}
MATERIAL_WORDS = {
    "Blue": "denim jeans",
    "Brown": "leather wood wooden oak suede cuir leder pelle cuero holz bois legno madera rattan",
    "White": "cotton marble porcelain ceramic coton baumwolle cotone algodon",
    "Beige": "linen canvas gabardine jute leinen lino lin straw wicker",
    "Grey": "wool concrete felt laine wolle lana beton cement aluminium",
    "Black": "nylon rubber plastic",
    "Purple": "velvet samt velours",
    "Pink": "silk satin cashmere soie seide seta seda",
}
AXES = {
    "kind": KIND_WORDS,
    "colour": COLOUR_WORDS,
    "pattern": PATTERN_WORDS,
    "trim": TRIM_WORDS,
    "material": MATERIAL_WORDS,
}
_MEANINGS = {
    word: (axis, value)
    for axis, table in reversed(AXES.items())  # a word of two meanings keeps the first of them
    for value, words in table.items()
    for word in words.split()
}


@lru_cache(maxsize=65536)
def sees(word: str) -> tuple[str, str] | None:
    """The axis (`kind`, `colour`, `pattern`, `trim` or `material`) and value that a word names, or None."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c))
    bare = re.sub(r"^\W+|\W+$", "", bare)
    for end in ("", "s", "es", "e", "n"):
        if bare.endswith(end) and (meaning := _MEANINGS.get(bare.removesuffix(end))):
            return meaning
    return None


def kind_in(words: str) -> str | None:
    """The kind of thing that the last telling word names; joined words are tried one by one as well."""
    for word in reversed(words.split()):
        for part in (word, *reversed(re.split(r"[^\w]+", word))):
            if (meaning := sees(part)) and meaning[0] == "kind":
                return meaning[1]
    return None
