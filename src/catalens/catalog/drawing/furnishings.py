"""Furniture, lamps and plants, in the notation of `shapes`: for drawn catalogues of shops that sell them.

    trim2 M52 150 L62 150 L58 190 L50 190 Z

They are no part of the assortments, so a model of the drawn shops has not seen them.
"""

from catalens.catalog.drawing.shapes import SHAPES, STANDING

FURNISHINGS: dict[str, str] = {
    "Chair": """
        back2 M58 128 L68 128 L66 188 L58 188 Z
        body M54 22 C54 14 62 10 70 10 L130 10 C138 10 146 14 146 22 L142 100 L58 100 Z
        seam M66 24 C66 20 70 18 74 18 L126 18 C130 18 134 20 134 24 L131 92 L69 92 Z
        body M50 102 C50 96 56 94 62 94 L138 94 C144 94 150 96 150 102 L156 126 C156 132 152 134 146 134 \
            L54 134 C48 134 44 132 44 126 Z
        fold M45 124 L155 124 L156 127 C156 132 152 134 146 134 L54 134 C48 134 44 132 44 126 Z
        trim2 M46 133 L60 133 L56 192 L46 192 Z
        trim M57 160 L143 160 L143 167 L57 167 Z
    """,
    "Table": """
        back2 M52 92 L62 92 L60 152 L53 152 Z
        body M40 62 L160 62 L186 92 L14 92 Z
        shine M62 68 L120 68 L112 84 L46 84 Z
        panel R14,92,172,16,3
        seam M100 94 L100 106
        trim O76,100,4,4 O124,100,4,4
        trim2 M20 108 L36 108 L33 184 L23 184 Z
    """,
    "Sofa": """
        dark2 R26,164,14,16,3
        body R30,46,140,84,18
        seam M100 50 L100 118
        fold M36 108 L164 108 L164 122 L36 122 Z
        panel R34,108,65,30,10
        panel R101,108,65,30,10
        body R24,134,152,34,8
        body2 R8,84,30,84,14
        trimline M26 162 L174 162
        trim2 R44,66,38,38,7
    """,
    "Bed": """
        dark2 R18,164,12,20,2
        body R20,26,160,76,12
        seam M60 30 L60 92 M100 28 L100 92 M140 30 L140 92
        pale R40,74,52,34,10 R108,74,52,34,10
        pale M22 100 L178 100 L188 128 L12 128 Z
        body M14 118 L186 118 L192 150 L192 168 L8 168 L8 150 Z
        fold M9 148 L191 148 L192 168 L8 168 Z
        trim M13 118 L187 118 L189 130 L11 130 Z
        trimline M10 160 L190 160
    """,
    "Cabinet": """
        dark2 R44,180,14,10,2
        body R34,12,132,170,5
        panel R42,22,56,104,2 R102,22,56,104,2
        panel R42,132,116,20,2 R42,156,116,20,2
        shine M48 28 L66 28 L52 118 L48 118 Z
        trim R89,64,6,28,3 R105,64,6,28,3
        trim R84,139,32,6,3 R84,163,32,6,3
    """,
    "Lamp": """
        pole M100 84 L100 170
        body M70 16 L130 16 L158 88 L42 88 Z
        shine M76 22 L90 22 L70 82 L54 82 Z
        trim M68 10 L132 10 L134 20 L66 20 Z
        trim M40 82 L160 82 L163 94 L37 94 Z
        trimline M132 94 L132 116
        trim O132,120,5,5
        dark M60 184 C60 168 76 164 100 164 C124 164 140 168 140 184 Z
    """,
    "Door": """
        dark R46,8,108,184,2
        body R54,16,92,174,1
        panel R64,28,32,62,2 R104,28,32,62,2
        panel R64,112,32,64,2 R104,112,32,64,2
        fold R64,84,32,6,1 R104,84,32,6,1
        trim R50,34,9,18,2 R50,150,9,18,2
        trim R128,96,12,14,3
        trimline M134 103 L118 103
    """,
    "Plant": """
        cord M100 132 L100 104
        glass2 M100 118 C80 118 40 112 24 84 C56 78 92 92 100 118 Z
        body M100 96 C74 84 58 56 66 26 C92 40 104 66 100 96 Z
        body M100 100 C98 70 116 34 150 20 C156 54 136 88 100 100 Z
        body2 M100 124 C76 128 36 118 20 88 C54 82 90 96 100 124 Z
        seam M72 38 C82 58 92 76 98 92 M144 28 C130 52 116 76 104 96
        panel M62 132 L138 132 L128 186 C127 190 124 192 120 192 L80 192 C76 192 73 190 72 186 Z
        trim M56 122 L144 122 L142 138 L58 138 Z
    """,
}
ALL_SHAPES = SHAPES | FURNISHINGS
ALL_STANDING = STANDING | set(FURNISHINGS)
